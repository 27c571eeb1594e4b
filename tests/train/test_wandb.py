from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from configs.schema import RunConfig
from record.events import read_events, record_event
from record.folder import RunFolder
from record.metrics import read_metrics
from support.runs import tiny
from support.small_models import train_here
from train.hooks.wandb import Branch, Wandb, branch

ID = "0123456789abcdef"


def lines(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1 / step, "mfu": None, "institution": "ours"} for step in steps]


def records(folder: RunFolder) -> list[list[wandb_internal_pb2.Record]]:
    """What each start wrote for ``wandb sync``, once wandb's own process has written the end of it."""
    files = sorted((folder.path / "wandb").glob("offline-run-*/*.wandb"), key=str)
    return [written(file) for file in files]


def written(file: Path) -> list[wandb_internal_pb2.Record]:
    deadline = time.monotonic() + 20
    while True:
        found = [wandb_internal_pb2.Record.FromString(part) for part in read_log(file.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.05)


def read_log(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: fragments with a header of 7 bytes, in blocks of 32 KiB."""
    position, whole = 7, b""  # the file's own header
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def history(read: list[wandb_internal_pb2.Record]) -> list[dict[str, str]]:
    rows = [record.history.item for record in read if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): item.value_json for item in row} for row in rows]


def warnings(folder: RunFolder) -> list[str]:
    return [event["text"] for event in read_events(folder) if event["event"] == "warning"]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny(tmp_path, "tracker=wandb")


@pytest.fixture
def folder(config: RunConfig) -> RunFolder:
    return RunFolder.of(config).create()


def test_a_restart_goes_on_with_the_same_run_and_may_repeat_steps(
    config: RunConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in ((1, 2, 3), (3, 4)):
        with Wandb(config, folder, ID) as tracker:
            tracker(lines(*steps))
        time.sleep(1.1)  # wandb names a start by its second
    first, second = records(folder)
    for read in (first, second):
        (run,) = [record.run for record in read if record.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.display_name, run.project) == (ID, "tiny", "umbel")
    assert [row["step"] for row in history(first)] == ["1", "2", "3"]
    assert [row["step"] for row in history(second)] == ["3", "4"]
    assert float(history(second)[1]["loss"]) == 0.25
    told = [event for event in read_events(folder) if event["event"] == "tracker"]
    assert [(event["id"], event["mode"], event["url"]) for event in told] == [(ID, "offline", None)] * 2
    assert warnings(folder) == []
    assert "WARNING" not in capfd.readouterr().err


def test_after_a_rollback_no_step_has_two_values(
    config: RunConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in ((1, 2, 3), (3, 4), (5,)):
        with Wandb(config, folder, ID) as tracker:
            tracker(lines(*steps))
        if steps == (1, 2, 3):
            record_event(folder, "rollback", **{"to": 2, "from": 3})
        time.sleep(1.1)  # wandb names a start by its second
    starts = records(folder)
    runs = [record.run for read in starts for record in read if record.HasField("run")]
    other, name = f"{ID}-r1", "tiny from step 2"
    assert [(run.run_id, run.display_name, run.run_group) for run in runs] == [
        (ID, "tiny", ID), (other, name, ID), (other, name, ID),
    ]  # fmt: skip
    configs = [{item.key: item.value_json for item in run.config.update} for run in runs]
    assert [json.loads(one.get("continues", "null")) for one in configs] == [
        None, {"id": ID, "step": 2}, {"id": ID, "step": 2},
    ]  # fmt: skip
    shown = [
        (run.run_id, row["step"]) for run, read in zip(runs, starts, strict=True) for row in history(read)
    ]
    assert shown == [(ID, "1"), (ID, "2"), (ID, "3"), (other, "3"), (other, "4"), (other, "5")]
    assert warnings(folder) == []


@pytest.mark.parametrize(
    ("rollbacks", "expected"),
    [
        ([], Branch("a")),
        ([100], Branch("a-r1", 100, "a")),
        ([100, 160], Branch("a-r2", 160, "a-r1")),
        ([100, 100], Branch("a-r2", 100, "a")),
        ([100, 60], Branch("a-r2", 60, "a")),
        ([100, 160, 120], Branch("a-r3", 120, "a-r1")),
    ],
)
def test_a_branch_continues_what_holds_the_steps_before_it(rollbacks: list[int], expected: Branch) -> None:
    events = [{"event": "rollback", "to": step, "from": 999} for step in rollbacks]
    assert branch("a", [{"event": "start", "step": 0}, *events]) == expected


def test_the_step_is_the_axis_of_every_metric(
    config: RunConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Wandb(config, folder, ID) as tracker:
        tracker(lines(7))
    metrics = [record.metric for record in records(folder)[0] if record.WhichOneof("record_type") == "metric"]
    assert {(metric.glob_name, metric.step_metric) for metric in metrics} >= {("*", "step")}


def test_what_is_sent_is_the_config_and_no_secret(
    config: RunConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a1b2c3d4" * 5
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("HF_TOKEN", "hf_" + secret)
    with Wandb(config, folder, ID) as tracker:
        tracker(lines(1))
    (read,) = records(folder)
    sent = "".join(str(record) for record in read)
    assert "schedule" in sent
    for path in (folder.path / "wandb").rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_without_a_key_it_is_offline_and_with_one_online(
    config: RunConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "init", lambda **settings: modes.append(settings["mode"]) or StandIn())
    for has_key in (False, True):
        monkeypatch.setattr(wandb, "login", lambda has_key=has_key, **_: has_key)
        Wandb(config, folder, ID)
    assert modes == ["offline", "online"]


class StandIn:
    """A wandb run that fails at the second call of what it is told to."""

    id, url = ID, "https://example.org/run"

    def __init__(self, fails: str = "") -> None:
        self.fails, self.logged, self.codes = fails, 0, []

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def log(self, _: dict[str, Any]) -> None:
        self.logged += 1
        if self.fails == "log" and self.logged > 1:
            raise BrokenPipeError("the service has gone\nand more")

    def finish(self, exit_code: int) -> None:
        self.codes.append(exit_code)
        if self.fails == "finish":
            raise TimeoutError


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_fault_of_the_tracker_is_one_warning_and_the_run_goes_on(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StandIn(fails)

    def init(**_: Any) -> StandIn:
        if fails == "init":
            raise wandb.errors.CommError("no answer")
        return run

    monkeypatch.setattr(wandb, "init", init)
    folder = train_here(tiny(tmp_path, "tracker=wandb"))
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4]
    assert read_events(folder)[-1 if fails != "finish" else -2]["event"] == "finished"
    reason = {"init": "no answer", "log": "the service has gone", "finish": "TimeoutError"}[fails]
    assert warnings(folder) == [f"wandb stopped: {reason}; metrics.jsonl goes on"]
    assert run.logged == {"init": 0, "log": 2, "finish": 4}[fails]


def test_held_out_losses_reach_the_tracker_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []
    run = StandIn()
    monkeypatch.setattr(run, "log", logged.append)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    folder = train_here(tiny(tmp_path, "tracker=wandb", "evaluation.every=4", "data.held_out=0.1"))
    (event,) = [event for event in read_events(folder) if event["event"] == "evaluation"]
    assert {"step": 4, "held_out/data": event["losses"]["data"]} in logged
    assert run.codes == [0]


def test_a_run_that_fails_is_marked_as_failed(config: RunConfig, folder: RunFolder, monkeypatch: Any) -> None:
    run = StandIn()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    with pytest.raises(RuntimeError), Wandb(config, folder, ID):
        raise RuntimeError
    assert run.codes == [1]


def test_signals_stay_the_workers_own(
    config: RunConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)]
    with Wandb(config, folder, ID):
        during = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)]
    assert during == before
