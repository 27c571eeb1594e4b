from __future__ import annotations

from pathlib import Path

import pytest

from record.control import clear_stop, request_stop, stop_requested
from record.events import latest, read_events, record_event
from record.folder import RunFolder
from record.lock import RunLock
from record.state import run_state


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def state(folder: RunFolder) -> str:
    return run_state(folder, read_events(folder))


def test_a_life(folder: RunFolder) -> None:
    assert state(folder) == "new"
    with RunLock(folder, "launch"):
        assert state(folder) == "starting"
        with RunLock(folder):
            record_event(folder, "start", attempt=1, step=0)
            assert state(folder) == "running"
    assert state(folder) == "interrupted"
    record_event(folder, "stopped", step=3, reason="asked")
    assert state(folder) == "stopped"
    record_event(folder, "start", attempt=2, step=3)
    record_event(folder, "failed", rank=0, error="loss is NaN", exit_code=1)
    assert state(folder) == "failed"
    record_event(folder, "finished", step=9)
    record_event(folder, "phase", name="late")
    assert state(folder) == "finished"
    record_event(folder, "rollback", **{"to": 3, "from": 9})
    assert state(folder) == "rolled back"
    record_event(folder, "start", attempt=3, step=3)
    assert state(folder) == "interrupted"


def test_the_life_of_a_job(folder: RunFolder) -> None:
    record_event(folder, "submitted", job="7", script="job/submit.sh")
    assert state(folder) == "queued"
    record_event(folder, "job", id="7", nodes=["node1"], deadline=None)
    assert state(folder) == "interrupted"
    record_event(folder, "start", attempt=1, step=0)
    record_event(folder, "stopped", step=3, reason="time limit")
    record_event(folder, "requeue", why="time limit", job="7", exclude=[])
    assert state(folder) == "requeued"
    record_event(folder, "job", id="7", nodes=["node1"], deadline=None)
    record_event(folder, "failed", rank=0, error="a fault", exit_code=1)
    record_event(folder, "gave up", why="a fault")
    assert state(folder) == "failed"


def test_latest(folder: RunFolder) -> None:
    for step in (1, 2):
        record_event(folder, "checkpoint", step=step)
    found = latest(read_events(folder), "checkpoint")
    assert found is not None
    assert found["step"] == 2
    assert latest(read_events(folder), "finished") is None


def test_stop_request(folder: RunFolder) -> None:
    assert not stop_requested(folder)
    request_stop(folder)
    request_stop(folder)
    assert stop_requested(folder)
    clear_stop(folder)
    clear_stop(folder)
    assert not stop_requested(folder)
