"""What follows from a rollback's event, done as often as it takes and never twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from base.errors import UmbelError
from configs.compose import compose, load, save
from record.events import latest, read_events, record_event, standing
from record.folder import RunFolder
from record.metrics import MetricsWriter, read_metrics
from record.rollback import finish_rollback

ASKED: dict[str, Any] = {"to": 4, "from": 8, "tokens": 99, "set_aside": ["step-00000006", "step-00000008"]}
KEYS = {"data.skip": [[], [[16, 32]]]}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run").create()
    save(compose(["experiment=demo", "run.name=run"]), folder.run_yaml)
    record_event(folder, "start", attempt=1, step=0)
    MetricsWriter(folder, 1).write([{"step": step} for step in range(1, 9)])
    for step in (2, 4, 6, 8):
        (folder.checkpoints / f"step-{step:08d}").mkdir()
        record_event(folder, "checkpoint", step=step)
    record_event(folder, "finished", step=8)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def changes(folder: RunFolder) -> list[dict[str, Any]]:
    return [event["keys"] for event in read_events(folder) if event["event"] == "change"]


def test_newer_checkpoints_are_set_aside_and_the_data_skipped_once(folder: RunFolder) -> None:
    finish_rollback(folder)  # nothing was asked
    record_event(folder, "rollback", **ASKED, keys=KEYS)
    for _ in range(2):
        finish_rollback(folder)
        assert names(folder.checkpoints) == ["rolled-back-0001", "step-00000002", "step-00000004"]
        assert names(folder.checkpoints / "rolled-back-0001") == ["step-00000006", "step-00000008"]
        assert load(folder.run_yaml).data.skip == [[16, 32]]
        assert changes(folder) == [KEYS]


def test_what_was_changed_after_it_stays(folder: RunFolder) -> None:
    record_event(folder, "rollback", **ASKED, keys=KEYS)
    record_event(folder, "change", keys={"optimizer.lr": [1, 2]})
    finish_rollback(folder)
    assert load(folder.run_yaml).data.skip == [[16, 32]]
    record_event(folder, "change", keys={"data.skip": [[[16, 32]], []]})
    save(compose(["experiment=demo", "run.name=run"]), folder.run_yaml)
    finish_rollback(folder)
    assert load(folder.run_yaml).data.skip == []


def test_the_checkpoints_of_the_start_after_it_stay(folder: RunFolder) -> None:
    record_event(folder, "rollback", **ASKED)
    finish_rollback(folder)
    record_event(folder, "start", attempt=2, step=4)
    (folder.checkpoints / "step-00000006").mkdir()
    finish_rollback(folder)
    assert "step-00000006" in names(folder.checkpoints)
    record_event(folder, "rollback", **ASKED | {"from": 6, "set_aside": ["step-00000006"]})
    finish_rollback(folder)
    assert names(folder.checkpoints / "rolled-back-0002") == ["step-00000006"]


def test_nothing_but_checkpoints_of_this_run_is_moved(folder: RunFolder) -> None:
    record_event(folder, "rollback", **ASKED | {"set_aside": ["../run.yaml", "step-00000009", "step-*"]})
    before = names(folder.checkpoints)
    finish_rollback(folder)
    assert names(folder.checkpoints) == before
    assert folder.run_yaml.exists()


def test_a_run_without_its_checkpoints_folder_is_no_fault(folder: RunFolder) -> None:
    record_event(folder, "rollback", **ASKED)
    shutil.rmtree(folder.checkpoints)
    finish_rollback(folder)
    folder.run_yaml.write_text(":{")
    finish_rollback(folder)  # a rollback that skips nothing does not read it
    record_event(folder, "rollback", **ASKED, keys=KEYS)
    with pytest.raises(UmbelError, match=r"run\.yaml"):
        finish_rollback(folder)


def test_lines_and_events_beyond_it_count_no_more_at_once(folder: RunFolder) -> None:
    record_event(folder, "rollback", **ASKED)
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4]
    events = read_events(folder)
    assert [event["step"] for event in standing(events) if event["event"] == "checkpoint"] == [2, 4]
    saved = latest(events, "checkpoint")
    assert saved is not None
    assert saved["step"] == 4
    assert latest(events, "finished") is None, "it may go on"
