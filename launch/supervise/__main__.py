"""``python -P -m launch.supervise RUN_FOLDER -- COMMAND…``: the parent of a run's workers while they work."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from base.errors import RunFailed, UmbelError
from configs.compose import load
from configs.schema import RunConfig
from launch.processes import SAVE_SECONDS
from launch.supervise.finding import Detector
from launch.supervise.place import Place
from launch.supervise.supervisor import Supervisor
from record.events import record_event
from record.folder import RunFolder
from record.lock import HANDED_DOWN, RunLock

USAGE = "python -P -m launch.supervise RUN_FOLDER -- COMMAND…"


def main(arguments: Sequence[str]) -> int:
    """Stand by the run until it ends or this job does; returns the exit code."""
    if len(arguments) < 3 or arguments[1] != "--":
        print(f"usage: {USAGE}", file=sys.stderr)
        return 2
    folder = RunFolder(Path(arguments[0]).resolve())
    try:
        with _lock(folder) as lock, lock.shared() as kept:
            place = _place(folder, load(folder.run_yaml), kept)
            return Supervisor(
                folder,
                partial(load, folder.run_yaml),
                place,
                arguments[2:],
                _detectors(folder),
                _roll_back(folder),
            ).run()
    except Exception as error:
        return _failed(folder, error)


def _lock(folder: RunFolder) -> RunLock:
    """The launcher's lock, where it handed it down; else our own, once a job before this one has let go."""
    lock, descriptor = RunLock(folder, "launch"), os.environ.pop(HANDED_DOWN, None)
    return lock.acquire(SAVE_SECONDS) if descriptor is None else lock.adopt(int(descriptor))


def _place(folder: RunFolder, config: RunConfig, kept: int) -> Place:
    if config.cluster.launcher == "slurm" and "SLURM_JOB_ID" in os.environ:
        from launch.supervise.slurm_place import SlurmPlace

        return SlurmPlace(folder, config.cluster, (kept,))
    from launch.supervise.local_place import LocalPlace

    return LocalPlace(folder.path, (kept,))


def _detectors(folder: RunFolder) -> Callable[[RunConfig, int, Sequence[str]], Sequence[Detector]]:
    from launch.supervise.detect import detectors

    return partial(detectors, folder)


def _roll_back(folder: RunFolder) -> Callable[[Mapping[str, Any]], None]:
    def go(way_back: Mapping[str, Any]) -> None:
        from launch.rollback import plan_rollback, roll_back

        roll_back(folder, plan_rollback(folder, way_back["to"], way_back.get("skip"), print))

    return go


def _failed(folder: RunFolder, error: Exception) -> int:
    """Leave word where the launcher and `umbel status` look."""
    if isinstance(error, UmbelError):
        text, code = str(error), error.exit_code
        print(f"umbel: error: {text}", file=sys.stderr)
    else:
        traceback.print_exc()
        text, code = f"failed by itself ({type(error).__name__}: {error})", RunFailed.exit_code
    with contextlib.suppress(OSError):
        if folder.run_yaml.exists():
            facts = {"rank": None, "who": "its supervisor", "error": text, "exit_code": code}
            record_event(folder, "failed", **facts, verdict=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
