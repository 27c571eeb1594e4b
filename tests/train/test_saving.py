"""Saves beside the steps: what a busy, killed or stuck writer means for the run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from base.errors import RunFailed, UmbelError
from checkpoint.folders import steps
from checkpoint.reader import StateReader
from checkpoint.verify import verify
from configs.schema import RunConfig
from data.prepare import prepare_run
from data.stream import BatchStream
from record.events import read_events
from record.folder import RunFolder
from support.curves import micro_batches
from support.runs import finish, tiny
from support.small_models import ALONE
from train.engine import Engine, build_engine
from train.position import Position
from train.restoring import find, load
from train.saving import Saver


class Run:
    """An engine in this process, the saver beside it, and what they leave."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.config: RunConfig = tiny(folder, "checkpoint.self_check=false", *overrides)
        self.folder = RunFolder.of(self.config).create()
        self.stream = BatchStream(prepare_run(self.config), self.config)
        self.engine = self.build()
        self.step = 0
        self.saver = Saver(self.config, ALONE, self.folder, "id", self.stream, self.engine)

    def build(self) -> Engine:
        return build_engine(self.config, ALONE, 4)

    def train(self) -> Position:
        self.step += 1
        batches, targets = micro_batches(self.step, 0, 1, 4)
        self.engine.step(self.step, batches, targets, 1e-2)
        return self.position

    @property
    def position(self) -> Position:
        return Position(self.step, 4 * self.step, 100 * self.step)

    @property
    def saved(self) -> list[int]:
        return sorted(steps(self.folder.checkpoints))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder) if event["event"] == name]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.saver.close()


def writer_of_this_process() -> psutil.Process:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # other tests' children may be ending
            if "checkpoint.writing" in child.cmdline():
                found.append(child)
    (writer,) = found
    return writer


def test_what_is_saved_is_the_state_at_that_step_however_many_follow(run: Run) -> None:
    position = run.train()
    before = {name: value.clone() for name, value in run.engine.model.state_dict().items()}
    assert run.saver.save(position)
    for _ in range(3):
        run.train()
    run.saver.drain()
    with StateReader(run.folder.checkpoints / "step-00000001") as reader:
        for name in reader.names("master"):
            assert reader.read(name, "master").tobytes() == before[name].numpy().tobytes()
    assert run.events("checkpoint")[0]["blocked"] < run.events("checkpoint")[0]["seconds"]


def test_it_goes_on_from_there_to_the_bit(run: Run) -> None:
    run.saver.save(run.train())
    run.saver.drain()
    first = run.train()
    other = run.build()
    checkpoint = find(run.config, ALONE, run.folder, "id")
    assert checkpoint is not None
    restored = load(checkpoint, run.config, ALONE, other, run.stream, "id", None)
    assert restored.position == Position(1, 4, 100)
    batches, targets = micro_batches(first.step, 0, 1, 4)
    other.step(first.step, batches, targets, 1e-2)
    live, again = run.engine.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(live[name], again[name]) for name in live)


@pytest.mark.parametrize("policy", ["skip", "wait"])
def test_a_save_that_finds_the_writer_busy(tmp_path: Path, policy: str) -> None:
    run = Run(tmp_path, f"checkpoint.when_busy={policy}")
    run.saver.save(run.train())
    run.saver.drain()
    writer = writer_of_this_process()
    writer.suspend()
    run.saver.save(run.train())
    run.train()
    if policy == "wait":
        # The save below waits for the one before, which goes on in a moment.
        os.system(f"(sleep 0.5; kill -CONT {writer.pid}) &")
    assert run.saver.save(run.position) is (policy == "wait")
    writer.resume()
    run.saver.drain()
    run.saver.close()
    assert run.saved == ([1, 2, 3] if policy == "wait" else [1, 2])
    skipped = run.events("checkpoint_skipped")
    assert [event["step"] for event in skipped] == ([] if policy == "wait" else [3])
    assert (run.events("checkpoint")[-1]["waited"] > 0.2) is (policy == "wait")


def test_the_last_save_is_never_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path, "checkpoint.when_busy=skip")
    run.saver.save(run.train())
    assert run.saver.save(run.train(), last=True)
    run.saver.drain()
    run.saver.close()
    assert run.saved == [1, 2]


def test_a_killed_writer_fails_one_save_and_the_next_has_another(run: Run) -> None:
    run.saver.save(run.train())
    run.saver.drain()
    writer = writer_of_this_process()
    writer.suspend()
    run.saver.save(run.train())
    # Killed before the job has reached it, it would just be replaced.
    run.saver.snapshot.wait()
    while not run.saver.writer._jobs.empty():
        time.sleep(0.01)
    time.sleep(0.5)
    writer.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not run.saver.failures and time.monotonic() < deadline:
        run.saver.poll()
    assert run.saver.failures == 1, run.events("checkpoint")
    assert "no checkpoint of step 2" in run.events("warning")[-1]["text"]
    run.saver.save(run.train())
    run.saver.drain()
    assert (run.saver.failures, run.saved) == (0, [1, 3])
    with StateReader(run.folder.checkpoints / "step-00000003") as reader:
        parent = reader.manifest["parent"]
    assert parent == run.saver.parent or parent is not None


def test_a_first_save_whose_writer_is_killed_is_tried_again_and_then_checked(tmp_path: Path) -> None:
    run = Run(tmp_path, "checkpoint.self_check=true")
    position, stop = run.train(), threading.Event()

    def kill() -> None:
        while not stop.is_set():
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "checkpoint.writing" in child.cmdline():
                        child.kill()
                        return

    killer = threading.Thread(target=kill)
    killer.start()
    assert run.saver.save(position)
    stop.set()
    killer.join()
    assert (run.saver.failures, run.saved, run.events("self_check")) == (1, [], [])
    assert run.saver.save(run.train())
    assert (run.saver.failures, run.saved) == (0, [2])
    assert [event["step"] for event in run.events("self_check")] == [2]
    run.saver.close()


def test_a_failed_save_is_told_where_it_is_waited_for(run: Run) -> None:
    run.saver.save(run.train())
    run.saver.drain()
    run.folder.checkpoints.rename(run.folder.path / "moved")
    run.folder.checkpoints.write_text("in the way")
    run.saver.save(run.train())
    with pytest.raises(UmbelError, match="checkpoints"):
        run.saver.drain()
    run.folder.checkpoints.unlink()
    (run.folder.path / "moved").rename(run.folder.checkpoints)
    verify(run.folder.checkpoints / "step-00000001")


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_the_first_save_is_read_back(tmp_path: Path, asynchronous: str) -> None:
    run = Run(tmp_path, "checkpoint.self_check=true", f"checkpoint.asynchronous={asynchronous}")
    run.saver.save(run.train())
    assert [event["step"] for event in run.events("self_check")] == [1]
    run.saver.save(run.train())
    run.saver.drain()
    run.saver.close()
    assert len(run.events("self_check")) == 1
    assert run.saved == [1, 2]


def test_a_first_save_that_is_not_what_is_live_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, "checkpoint.self_check=true")
    position = run.train()
    slices = list(run.engine.state.owned())
    # A state that names one tensor as another: what a change inside DeepSpeed could do.
    crossed = [
        slices[0]._replace(views={**slices[0].views, "exp_avg": slices[0].views["master"]}),
        *slices[1:],
    ]
    run.saver.snapshot.close()
    monkeypatch.setattr(run.engine.state, "owned", lambda: iter(crossed))
    saver = Saver(run.config, ALONE, run.folder, "id", run.stream, run.engine)
    with pytest.raises(RunFailed, match=r"exp_avg.*differ"):
        saver.save(position)
    saver.close()


def test_without_a_process_beside_it_the_same_bytes_are_written(tmp_path: Path) -> None:
    beside, here = Run(tmp_path / "a"), Run(tmp_path / "b", "checkpoint.asynchronous=false")
    for run in (beside, here):
        run.saver.save(run.train())
        run.saver.drain()
        run.saver.close()
    name = "step-00000001/state-00001-of-00001.safetensors"
    assert (beside.folder.checkpoints / name).read_bytes() == (here.folder.checkpoints / name).read_bytes()
    assert here.events("checkpoint")[0]["blocked"] == pytest.approx(
        here.events("checkpoint")[0]["seconds"], rel=0.5
    )


def test_a_run_that_fails_keeps_the_save_it_had_begun(run: Run) -> None:
    run.saver.save(run.train())
    run.saver.close()
    assert run.saved == [1]
    verify(run.folder.checkpoints / "step-00000001")


@pytest.mark.slow
def test_two_processes_save_at_every_step_and_nothing_waits_for_ever(tmp_path: Path) -> None:
    config = tiny(
        tmp_path,
        "parallelism=zero2",
        "parallelism.processes=null",
        "checkpoint.every=1",
        "checkpoint.keep_last=2",
        "checkpoint.keep_every=2",
        "schedule.steps=6",
    )
    finish(config, 2)
    folder = RunFolder.of(config)
    assert sorted(steps(folder.checkpoints)) == [2, 4, 5, 6]
    assert [event["step"] for event in read_events(folder) if event["event"] == "checkpoint"] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    for checkpoint in steps(folder.checkpoints).values():
        verify(checkpoint, run_id=(folder.path / "run_id").read_text().strip())
