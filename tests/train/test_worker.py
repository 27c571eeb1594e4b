"""The worker on good days and bad ones, as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from base.files import read_json
from checkpoint.reader import latest
from configs.schema import RunConfig
from record.control import request_stop
from record.events import latest as latest_event
from record.events import read_events
from record.folder import RunFolder
from record.lock import RunLock
from record.metrics import read_metrics
from support.processes import free_port, worker_env
from support.runs import finish, freeze, tiny, work


def failure(config: RunConfig) -> dict[str, Any]:
    """The first failure that a run's workers recorded."""
    return next(event for event in read_events(RunFolder.of(config)) if event["event"] == "failed")


def start(config: RunConfig, processes: int) -> list[subprocess.Popen[bytes]]:
    folder, port = freeze(config), free_port()
    command = [sys.executable, "-m", "train.worker", str(folder.run_yaml)]
    return [
        subprocess.Popen(
            command, env=os.environ | worker_env(rank, processes, port) | {"PYTHONSAFEPATH": "1"}
        )
        for rank in range(processes)
    ]


def wait_for(condition: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_to_its_end(tmp_path: Path) -> None:
    config = tiny(tmp_path, "evaluation.every=2", "samples.every=2", 'samples.prompts=["a bloom"]')
    lines = finish(config)
    needed = {
        "step",
        "sequences",
        "tokens",
        "loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "mfu",
        "data_wait",
        "world_size",
        "institution",
        "attempt",
    }
    assert needed <= lines[4].keys()
    assert lines[4]["sequences"] == 16
    assert 0.9 * 16 * 32 < lines[4]["tokens"] < 16 * 32  # a document's first token is no target
    events = {event["event"]: event for event in read_events(RunFolder.of(config))}
    assert events["finished"]["step"] == 4
    assert set(events["evaluation"]["losses"]) == {"data"}
    assert events["sample"]["prompt"] == "a bloom"
    assert finish(config) == lines, "a finished run started again adds nothing"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "file"])
def test_a_stop_saves_collectively_at_the_same_step(tmp_path: Path, how: str) -> None:
    config = tiny(
        tmp_path, "schedule.steps=100000", "parallelism=ddp", "parallelism.processes=2", "checkpoint.every=0"
    )
    folder = RunFolder.of(config)
    workers = start(config, 2)
    try:
        wait_for(lambda: len(read_metrics(folder)) > 3)
        workers[1].send_signal(signal.SIGTERM) if how == "signal" else request_stop(folder)
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    stopped = read_events(folder)[-1]
    assert stopped["event"] == "stopped"
    newest = latest(folder.checkpoints, verify="full")
    assert newest is not None
    assert read_json(newest / "manifest.json")["step"] == stopped["step"] == read_metrics(folder)[-1]["step"]
    assert not (folder.control / "stop").exists(), "a request is served once"


@pytest.mark.slow
def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = tiny(
        tmp_path,
        "optimizer.lr=1e25",
        "schedule.warmup_steps=0",
        "schedule.steps=50",
        "checkpoint.every=1",
        "tracker.log_every=5",
    )
    assert work(config)[0].returncode == 1
    failed = failure(config)
    assert "the loss is nan" in failed["error"] or "the loss is inf" in failed["error"]
    step = read_metrics(RunFolder.of(config))[-1]["step"]
    assert f"step {step + 1}, rank 0" in failed["error"]
    newest = latest(RunFolder.of(config).checkpoints, verify="full")
    assert newest is None or read_json(newest / "manifest.json")["step"] <= step


@pytest.mark.slow
def test_a_limit_on_file_sizes_is_told_in_one_line_and_loses_nothing(tmp_path: Path) -> None:
    config = tiny(tmp_path, "checkpoint.every=2")
    finish(config, env={"UMBEL_STOP_AFTER": "2"})
    folder = freeze(config)
    command = f"ulimit -f 100; exec {sys.executable} -m train.worker {folder.run_yaml}"
    ended = subprocess.run(["bash", "-c", command], check=False, capture_output=True)
    assert ended.returncode == 2
    assert "raise the limit on file sizes (ulimit -f)" in failure(config)["error"]
    newest = latest(folder.checkpoints, verify="full")
    assert newest is not None
    assert newest.name == "step-00000002"
    assert len(finish(config)) == 4


@pytest.mark.slow
def test_other_data_than_the_run_began_with_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    finish(config, env={"UMBEL_STOP_AFTER": "2"})
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + '{"text": "one more"}\n')
    assert work(config)[0].returncode == 2
    assert "corpus.jsonl" in failure(config)["error"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_by(tmp_path: Path) -> None:
    config = tiny(tmp_path, "checkpoint.every=2")
    whole = finish(config)
    folder = RunFolder.of(config)
    shard = folder.checkpoints / "step-00000004" / "state-00001-of-00001.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-5] ^= 1
    shard.write_bytes(damaged)
    again = finish(config)
    assert {step: line["loss"] for step, line in again.items()} == {
        step: line["loss"] for step, line in whole.items()
    }
    warnings = [event["text"] for event in read_events(folder) if event["event"] == "warning"]
    assert any(shard.name in text for text in warnings)


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    finish(tiny(tmp_path), env={"UMBEL_STOP_AFTER": "2"})
    wider = tiny(tmp_path, "model.config.hidden_size=64")
    assert work(wider)[0].returncode == 2
    assert "is of another model: transformer." in failure(wider)["error"]


@pytest.mark.slow
def test_two_attempts_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.worker.LOCK_WAIT_SECONDS", 0)
    from train import worker

    config = tiny(tmp_path)
    folder = freeze(config)
    with RunLock(folder).acquire():
        assert worker.main(folder.run_yaml) == 2
    assert "is in use" in failure(config)["error"]


@pytest.mark.slow
def test_a_config_that_was_edited_by_hand_is_checked(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    folder = freeze(config)
    folder.run_yaml.write_text(folder.run_yaml.read_text().replace("warmup_steps", "warmup_step"))
    command = [sys.executable, "-m", "train.worker", str(folder.run_yaml)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2
    assert "did you mean 'warmup_steps'?" in failure(config)["error"]


@pytest.mark.slow
def test_a_batch_ramp_grows_and_resumes(tmp_path: Path) -> None:
    ramp = (
        "schedule.global_batch=8",
        "+schedule.batch_ramp={start: 2, increment: 2, sequences: 18}",
        "schedule.steps=10",
        "parallelism.micro_batch=2",
    )
    whole = finish(tiny(tmp_path, "run.name=whole", *ramp))
    parts = tiny(tmp_path, "run.name=parts", *ramp)
    finish(parts, env={"UMBEL_STOP_AFTER": "4"})
    resumed = finish(parts)
    assert [line["sequences"] for line in whole.values()][:6] != [8 * step for step in range(1, 7)]
    for step, line in whole.items():
        assert (resumed[step]["loss"], resumed[step]["sequences"]) == (line["loss"], line["sequences"])


@pytest.mark.slow
def test_another_batch_is_another_run(tmp_path: Path) -> None:
    """It would go on from a sequence that the run has not reached, or has seen."""
    finish(tiny(tmp_path), env={"UMBEL_STOP_AFTER": "2"})
    doubled = tiny(tmp_path, "schedule.global_batch=8")
    assert work(doubled)[0].returncode == 2
    assert "has seen 8 sequences in 2 steps, with this batch it would be 16" in failure(doubled)["error"]


@pytest.mark.slow
def test_tasks_of_srun_find_each_other(tmp_path: Path) -> None:
    """Slurm's own variables are enough on one node."""
    config = tiny(tmp_path, "parallelism=ddp", "parallelism.processes=2", "parallelism.micro_batch=1")
    folder, names = freeze(config), ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    step = {
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": str(free_port() - 20000),
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "train.worker", str(folder.run_yaml)],
            env={**clean, **step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    assert [task.wait(timeout=90) for task in tasks] == [0, 0]
    assert {line["world_size"] for line in read_metrics(folder)} == {2}


def end(workers: list[subprocess.Popen[bytes]]) -> list[int]:
    try:
        return [worker.wait(timeout=60) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


@pytest.mark.slow
def test_a_long_evaluation_does_not_keep_a_run_from_stopping(tmp_path: Path) -> None:
    config = tiny(
        tmp_path, "schedule.steps=1000", "evaluation.every=2", "evaluation.sequences=100000",
        "data.held_out=0.45", "parallelism=ddp", "parallelism.processes=2", "parallelism.micro_batch=1",
        "data.sequence_length=16",
    )  # fmt: skip
    write_many(tmp_path / "corpus.jsonl")
    folder = RunFolder.of(config)
    workers = start(config, 2)
    wait_for(lambda: len(read_metrics(folder)) >= 2)
    time.sleep(0.5)
    began = time.monotonic()
    workers[1].send_signal(signal.SIGUSR2)
    assert end(workers) == [0, 0]
    assert time.monotonic() - began < 20
    events = read_events(folder)
    assert latest_event(events, "evaluation") is None
    stopped, saved = latest_event(events, "stopped"), latest_event(events, "checkpoint")
    assert stopped is not None
    assert saved is not None
    assert stopped["step"] == saved["step"] == 2


def write_many(corpus: Path) -> None:
    """So much held out that an evaluation takes minutes."""
    corpus.write_text(corpus.read_text() * 60)


@pytest.mark.slow
def test_a_stop_before_the_first_step_ends_in_order_with_nothing_to_save(tmp_path: Path) -> None:
    config = tiny(tmp_path, "schedule.steps=1000")
    folder = RunFolder.of(config)
    folder.create()
    request_stop(folder)
    assert end(start(config, 1)) == [0]
    stopped = latest_event(read_events(folder), "stopped")
    assert stopped is not None
    assert (stopped["step"], stopped["reason"]) == (0, "umbel stop")
    assert latest_event(read_events(folder), "start") is None
    assert not (folder.control / "stop").exists()


@pytest.mark.slow
def test_a_touched_file_saves_once_and_the_run_goes_on(tmp_path: Path) -> None:
    config = tiny(tmp_path, "schedule.steps=100000", "checkpoint.every=0", "tracker.log_every=5")
    folder = RunFolder.of(config)
    workers = start(config, 1)
    try:
        wait_for(lambda: len(read_metrics(folder)) > 5)
        (folder.control / "save").touch()
        wait_for(lambda: latest_event(read_events(folder), "checkpoint"), seconds=15)
        saved = latest_event(read_events(folder), "checkpoint")
        assert saved is not None
        before = len(read_metrics(folder))
        wait_for(lambda: len(read_metrics(folder)) > before + 10)
        assert not (folder.control / "save").exists()
        assert len([event for event in read_events(folder) if event["event"] == "checkpoint"]) == 1
        (folder.control / "stop").touch()
        assert end(workers) == [0]
    finally:
        workers[0].kill()
    assert latest_event(read_events(folder), "stopped")["reason"] == "control/stop"  # type: ignore[index]
