"""`umbel` with the stand-in worker, as a process of its own: what tests send signals to."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from launch import processes

STAND_IN = str(Path(__file__).with_name("stand_in_worker.py"))


def command(run_yaml: Path, world_size: int) -> list[str]:
    """The real command line with the stand-in in place of ``-m train.worker``."""
    real = _real(run_yaml, world_size)
    at = real.index("train.worker")
    return [*real[: at - 1], STAND_IN, *real[at + 1 :]]


_real = processes.command

if __name__ == "__main__":
    import data.prepare
    import launch.local
    import umbel

    launch.local.command = command
    if os.environ.get("WAIT") == "prepare":
        data.prepare.prepare_run = lambda *_: time.sleep(60)
    sys.argv[0] = "umbel"
    umbel.main()
