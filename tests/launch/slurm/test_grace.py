"""The warning before a job's end: long enough for a step and a save of this very run."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import Slurm
from launch.slurm.grace import grace_seconds
from record.events import record_event
from record.folder import RunFolder
from record.metrics import MetricsWriter


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def measured(folder: RunFolder, steps: list[float], saves: list[float]) -> RunFolder:
    folder.create()
    lines = [{"step": number, "step_seconds": seconds} for number, seconds in enumerate(steps, 1)]
    MetricsWriter(folder, 1).write(lines)
    for seconds in saves:
        record_event(folder, "checkpoint", step=1, seconds=seconds)
    return folder


@pytest.mark.parametrize(
    ("steps", "saves", "seconds"),
    [
        ([100.0, 105.0, 90.0], [40.0, 45.5], 301),  # BLOOM's: a step of 105 s and a save of 40 s
        ([0.1], [0.5], 60),
        ([1e6], [1.0], 65535),
        ([100.0], [], 300),
        ([], [40.0], 300),
    ],
)
def test_twice_the_slowest_step_and_save(
    folder: RunFolder, steps: list[float], saves: list[float], seconds: int
) -> None:
    assert grace_seconds(Slurm(), measured(folder, steps, saves)) == seconds


def test_a_new_run_gets_five_minutes_and_a_short_job_a_third(folder: RunFolder) -> None:
    assert grace_seconds(Slurm(), folder) == 300
    assert grace_seconds(Slurm(time="20:00:00"), folder) == 300
    assert grace_seconds(Slurm(time="3"), folder) == 60
    assert grace_seconds(Slurm(time="UNLIMITED"), folder) == 300
    assert not folder.path.exists()


def test_what_is_given_holds(folder: RunFolder) -> None:
    assert grace_seconds(Slurm(grace_seconds=7, time="3"), folder) == 7
