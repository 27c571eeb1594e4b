from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from launch.progress import PlainProgress, progress, progress_line
from launch.screens.status import status_card, status_table
from launch.status import RunStatus, status_of
from record.events import record_event
from record.folder import RunFolder
from record.lock import RunLock
from record.metrics import MetricsWriter


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def write_step(folder: RunFolder, step: int, attempt: int, second: int) -> None:
    time = f"2026-11-23T08:00:{second:02d}.000+00:00"
    MetricsWriter(folder, attempt).write(
        [
            {
                "step": step,
                "loss": 3.0,
                "tokens": 64 * step,
                "tokens_per_second": 41_000.0,
                "mfu": 0.43,
                "time": time,
            }
        ]
    )


def test_a_running_run(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0, world_size=2, zero_stage=2)
    write_step(folder, 10, 1, second=0)
    write_step(folder, 20, 1, second=20)
    with RunLock(folder):
        status = status_of(folder, steps=50)
    assert (status.state, status.step, status.world_size) == ("running", 20, 2)
    assert status.eta == pytest.approx(60)
    assert status.phase is None


def test_eta_needs_two_times_of_this_attempt(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0)
    write_step(folder, 10, 1, second=0)
    record_event(folder, "start", attempt=2, step=10)
    write_step(folder, 20, 2, second=50)
    with RunLock(folder):
        assert status_of(folder, steps=50).eta is None


def test_a_phase_shows_until_the_next_step(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=4)
    record_event(folder, "phase", name="first step")
    with RunLock(folder):
        assert (status_of(folder, 9).phase, status_of(folder, 9).step) == ("first step", 4)
        MetricsWriter(folder, 1).write([{"step": 5, "loss": 3.0}])
        assert status_of(folder, 9).phase is None


def test_a_failure_keeps_its_words(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0, world_size=1, zero_stage=0)
    record_event(folder, "failed", rank=0, error="loss is NaN at step 7", exit_code=1)
    status = status_of(folder, steps=9)
    assert (status.state, status.error) == ("failed", "loss is NaN at step 7")
    assert "loss is NaN at step 7" in drawn(status_card(status))


def test_the_line_says_only_what_is_known() -> None:
    bare = RunStatus(name="a", state="running", step=3, steps=9)
    assert progress_line(bare) == "step 3/9"
    full = RunStatus(
        name="a", state="running", step=120, steps=200, loss=3.2104, tokens_per_second=41_234.0, mfu=0.43,
        eta=130.0, checkpoint_step=100, checkpoint_age=185.0,
    )  # fmt: skip
    assert (
        progress_line(full) == "step 120/200 · loss 3.210 · 41k tok/s · MFU 43 % · ETA 2m10 · ckpt 3 min ago"
    )


def drawn(what: object, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(what)
    return file.getvalue()


def test_the_table_fits_a_terminal() -> None:
    run = RunStatus(
        name="bloom_560m", state="interrupted", step=12_345, steps=50_000, loss=2.345,
        tokens_per_second=41_234.0, eta=250_000.0, checkpoint_step=12_000, checkpoint_age=185.0,
    )  # fmt: skip
    text = drawn(status_table([run]))
    assert len(text.splitlines()) == 2
    assert "12345/50000" in text


def test_elsewhere_than_on_a_terminal_each_change_is_one_line() -> None:
    file = io.StringIO()
    console = Console(file=file, width=40)
    with progress(console) as shown:
        assert isinstance(shown, PlainProgress)
        for step in (0, 0, 1, 1, 2):
            phase = "building model" if step == 0 else None
            shown.show(RunStatus(name="a", state="running", step=step, steps=9, phase=phase, loss=3.0))
        shown.note("[checkpoint] of step 2")
    assert file.getvalue().splitlines() == [
        "building model",
        "step 1/9 · loss 3.000",
        "step 2/9 · loss 3.000",
        "[checkpoint] of step 2",
    ]


def test_the_cause_of_a_failure_is_its_first_word_or_the_launchers_verdict(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0)
    record_event(folder, "failed", rank=0, error="of an earlier attempt")
    record_event(folder, "start", attempt=2, step=0)
    record_event(folder, "failed", rank=1, error="the disk is full")
    record_event(folder, "failed", rank=0, error="connection closed by peer")
    assert status_of(folder, 9).error == "the disk is full"
    record_event(folder, "failed", rank=2, error="was killed by SIGKILL", verdict=True)
    assert status_of(folder, 9).error == "was killed by SIGKILL"
    record_event(folder, "phase", name="starting workers")
    record_event(folder, "failed", rank=0, error="no CUDA device is visible")
    assert status_of(folder, 9).error == "no CUDA device is visible"


def test_checkpoints_that_a_start_passed_by_do_not_count(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0)
    for step in (10, 20):
        record_event(folder, "checkpoint", step=step, seconds=0.1)
    assert status_of(folder, 99).checkpoint_step == 20
    record_event(folder, "start", attempt=2, step=10)
    assert (status_of(folder, 99).checkpoint_step, status_of(folder, 99).step) == (10, 10)
    record_event(folder, "checkpoint", step=15, seconds=0.1)
    assert (status_of(folder, 99).checkpoint_step, status_of(folder, 99).step) == (15, 15)


def test_a_rollback_shows_until_the_next_start(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0, world_size=1, zero_stage=0)
    for step in (100, 200):
        write_step(folder, step, 1, second=0)
        record_event(folder, "checkpoint", step=step, seconds=0.1)
    record_event(folder, "start", attempt=2, step=200, world_size=1, zero_stage=0)
    write_step(folder, 250, 2, second=1)
    record_event(folder, "rollback", **{"to": 100, "from": 250})
    status = status_of(folder, 999)
    assert (status.state, status.step, status.checkpoint_step, status.tokens) == (
        "rolled back",
        100,
        100,
        6400,
    )
    assert "rolled back to 100 (from 250)" in drawn(status_card(status))
    assert "rolled back" in drawn(status_table([status]))
    with RunLock(folder, "launch"):
        status = status_of(folder, 999)
    assert (status.state, status.step, status.rolled_back_from) == ("starting", 100, None)
    record_event(folder, "start", attempt=3, step=100, world_size=1, zero_stage=0)
    write_step(folder, 101, 3, second=2)
    status = status_of(folder, 999)
    assert (status.state, status.step, status.checkpoint_step) == ("interrupted", 101, 100)
    assert "rolled back" not in drawn(status_card(status))
