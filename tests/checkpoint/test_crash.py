"""kill -9 while saving: the newest whole checkpoint is always found, and what is left over is removed."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from checkpoint.folders import steps
from checkpoint.reader import latest
from checkpoint.verify import verify
from checkpoint.writer import clean

SAVER = Path(__file__).with_name("crashing_saver.py")
KILLS = 20


def _saver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crashing_saver", SAVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _kill_after(checkpoints: Path, saves: int, seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, str(SAVER), str(checkpoints), "random"], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert all(process.stdout.readline() == b"saved\n" for _ in range(saves))
        time.sleep(seconds)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_killed_at_random_moments_the_newest_whole_one_is_found(checkpoints: Path) -> None:
    saver, moments, newest, leftovers = _saver(), random.Random(1), -1, 0
    for _ in range(KILLS):
        _kill_after(checkpoints, moments.randint(1, 4), moments.uniform(0, 0.02))
        leftovers += any(name.startswith(".") for name in os.listdir(checkpoints))
        clean(checkpoints)
        found = latest(checkpoints, verify="full")
        assert found is not None
        seed = saver.seed_of(found)
        assert seed > newest, "an older state came back"
        newest = seed
        for folder in steps(checkpoints).values():
            verify(folder)
        assert all(name.startswith("step-") for name in os.listdir(checkpoints))
    assert leftovers > KILLS // 4, "the kills must have hit saves"


@pytest.mark.slow
def test_killed_before_every_change_of_the_disk_nothing_is_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SAVER), str(tmp_path), "every"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30, "that many changes make a save and a prune"
