from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from base.errors import RunFailed
from checkpoint import writing
from checkpoint.background import BackgroundWriter
from checkpoint.format import step_name, step_of
from checkpoint.job import Outcome, SaveJob
from checkpoint.manifest import digest
from checkpoint.messages import decode_job, decode_outcome, encode_job, encode_outcome
from checkpoint.reader import StateReader, latest
from checkpoint.retention import Retention
from checkpoint.verify import verify
from checkpoint.writer import fail_share
from support.portable_state import SAVE_ID, State, fill, job_of, make_state, share_of
from support.small_disk import SmallDisk

NewWriter = Callable[..., BackgroundWriter]
SECONDS = 30


def submit(
    writer: BackgroundWriter,
    checkpoints: Path,
    state: State,
    rank: int = 0,
    world_size: int = 1,
    step: int = 100,
    keep_last: int = 3,
) -> SaveJob:
    slots = fill(writer.arena, share_of(state, rank, world_size))
    job = job_of(checkpoints, state, slots, rank, world_size, step, f"{step:08x}", keep_last)
    writer.submit(job)
    return job


def process_of(writer: BackgroundWriter) -> psutil.Process:
    """The writer's own, once it has one."""
    deadline = time.monotonic() + SECONDS
    while writer._process is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return psutil.Process(writer._process.pid)


def same(folder: Path, state: State) -> bool:
    verify(folder)
    with StateReader(folder) as reader:
        return all(reader.read(*key).tobytes() == values.tobytes() for key, values in state.flat.items())


def test_two_ranks_write_beside_their_workers(checkpoints: Path, new_writer: NewWriter) -> None:
    state, writers = make_state(), [new_writer(), new_writer()]
    for rank in (0, 1):
        submit(writers[rank], checkpoints, state, rank, 2)
        assert writers[rank].busy
    first, second = (writer.wait(SECONDS) for writer in writers)
    folder = checkpoints / "step-00000100"
    assert same(folder, state)
    assert os.listdir(checkpoints) == [folder.name]
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert first is not None
    assert second is not None
    assert first._replace(seconds=0) == Outcome(100, bytes=sum(sizes.values()), digest=digest(folder))
    assert second._replace(seconds=0) == Outcome(100, bytes=sizes["state-00002-of-00002.safetensors"])
    assert 0 < second.seconds < SECONDS
    assert not any(writer.busy for writer in writers)


def test_a_job_is_refused_while_another_is_in_hand(checkpoints: Path, new_writer: NewWriter) -> None:
    state, writer = make_state(), new_writer()
    job = submit(writer, checkpoints, state)
    for attempt in (lambda: writer.submit(job), lambda: writer.arena(1)):
        with pytest.raises(ValueError, match="a save is being written"):
            attempt()
    assert wait_by_polling(writer).error is None
    assert writer.poll() is None
    assert writer.wait() is None, "nothing is in hand"


def wait_by_polling(writer: BackgroundWriter) -> Outcome:
    deadline = time.monotonic() + SECONDS
    while (outcome := writer.poll()) is None:
        assert writer.busy
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert not writer.busy
    return outcome


def test_jobs_follow_each_other_in_one_process_and_older_checkpoints_go(
    checkpoints: Path, new_writer: NewWriter
) -> None:
    writer, processes = new_writer(), set()
    for step in (1, 2, 3, 4):
        submit(writer, checkpoints, make_state(step), step=step, keep_last=2)
        outcome = writer.wait(SECONDS)
        assert outcome is not None
        assert outcome.deleted == ((step - 2,) if step > 2 else ())
        assert outcome.warning is None
        processes.add(process_of(writer).pid)
    assert len(processes) == 1
    assert sorted(os.listdir(checkpoints)) == ["step-00000003", "step-00000004"]
    assert same(checkpoints / "step-00000004", make_state(4))


def test_a_thread_that_ends_may_submit(checkpoints: Path, new_writer: NewWriter) -> None:
    state, writer = make_state(), new_writer()
    slots = fill(writer.arena, share_of(state, 0, 1))
    for step in (1, 2):  # the second finds out whether the process outlived the thread
        job = job_of(checkpoints, state, slots, step=step)
        thread = threading.Thread(target=writer.submit, args=(job,))
        thread.start()
        thread.join()
        outcome = writer.wait(SECONDS)
        assert outcome is not None
        assert outcome.error is None
        time.sleep(0.05)


def test_the_arena_grows_under_what_is_there(checkpoints: Path, new_writer: NewWriter) -> None:
    writer, small = new_writer(), make_state(1)
    view = writer.arena(5000)
    assert np.frombuffer(view, np.uint8).ctypes.data % 4096 == 0
    view[:5000] = bytes(range(250)) * 20
    submit(writer, checkpoints, small, step=1)
    writer.wait(SECONDS)
    large = make_state(2, {"wte.weight": [500, 300]})
    before = bytes(view[4000:5000])
    grown = writer.arena(2 << 20)
    assert len(grown) >= 2 << 20
    assert bytes(grown[4000:5000]) == before
    view[4000] ^= 0xFF
    assert grown[4000] == view[4000], "old views show the same memory"
    assert len(writer.arena(10)) == len(grown), "it never shrinks"
    submit(writer, checkpoints, large, step=2)
    outcome = writer.wait(SECONDS)
    assert outcome is not None
    assert outcome.error is None
    assert same(checkpoints / "step-00000002", large)


def test_more_memory_than_there_is_is_one_line(
    new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(RunFailed, match=r"takes 1\.0 GiB of host memory .*; .*checkpoint.asynchronous=false"):
        new_writer().arena(1 << 30)


def test_the_fault_of_a_save_is_told_and_the_next_one_works(checkpoints: Path, new_writer: NewWriter) -> None:
    state, writer = make_state(), new_writer()
    slots = fill(writer.arena, share_of(state, 0, 1))
    writer.submit(job_of(checkpoints, state, slots, tokens=-1))
    outcome = writer.wait(SECONDS)
    assert outcome is not None
    assert "'tokens' must be a whole number" in str(outcome.error)
    assert (outcome.exit_code, outcome.digest, outcome.bytes) == (1, None, 0)
    assert os.listdir(checkpoints) == []
    submit(writer, checkpoints, state)
    assert writer.wait(SECONDS).error is None  # type: ignore[union-attr]


def test_a_full_disk_is_told_with_its_exit_code(
    new_disk: Callable[[str], SmallDisk], new_writer: NewWriter
) -> None:
    checkpoints, writer = new_disk("size=256k").path / "checkpoints", new_writer()
    submit(writer, checkpoints, make_state(), step=1)
    assert writer.wait(SECONDS).error is None  # type: ignore[union-attr]
    submit(writer, checkpoints, make_state(shapes={"wte.weight": [300, 100]}), step=2)
    outcome = writer.wait(SECONDS)
    assert outcome is not None
    assert "the disk is full: the checkpoint needs 351." in str(outcome.error)
    assert outcome.exit_code == 2
    assert os.listdir(checkpoints) == ["step-00000001"]


def test_a_disk_that_turns_read_only_beside_a_save_loses_nothing(
    new_disk: Callable[[str], SmallDisk], new_writer: NewWriter
) -> None:
    disk, writer = new_disk("size=1m"), new_writer()
    checkpoints, step = disk.path / "checkpoints", 0
    turning = threading.Timer(0.1, disk.make_read_only)  # the kernel lets it pass between two files
    while True:
        if step == 1:
            turning.start()
        submit(writer, checkpoints, make_state(step + 1), step=step + 1, keep_last=2)
        outcome = writer.wait(SECONDS)
        assert outcome is not None
        if outcome.error is not None:
            break
        step += 1
    turning.join()
    assert "Read-only file system" in str(outcome.error)
    newest = latest(checkpoints, verify="full")
    assert newest is not None
    assert newest.name in (step_name(step), step_name(step + 1)), "the last word may be lost, no checkpoint"
    assert same(newest, make_state(step_of(newest.name) or 0))


def test_retention_that_fails_is_a_warning(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(writing, "prune", refuse)
    state, memory = make_state(), bytearray(1 << 16)
    slots = fill(lambda _: memoryview(memory), share_of(state, 0, 1))
    outcome = writing.run(job_of(checkpoints, state, slots), memoryview(memory))
    assert outcome.error is None
    assert outcome.warning == "older checkpoints stay: PermissionError: [Errno 13] Permission denied"
    assert same(checkpoints / "step-00000100", state)


def test_a_killed_process_is_a_failed_save_that_all_ranks_hear_of(
    checkpoints: Path, new_writer: NewWriter
) -> None:
    state, writers = make_state(), [new_writer(), new_writer()]
    submit(writers[0], checkpoints, state, 0, 2)
    slots = fill(writers[1].arena, share_of(state, 1, 2))
    process_of(writers[0])
    kill_next(writers[1])
    writers[1].submit(job_of(checkpoints, state, slots, 1, 2, 100, f"{100:08x}"))
    for writer in writers[::-1]:
        outcome = writer.wait(SECONDS)
        assert outcome is not None
        assert "the process that writes checkpoints was killed by SIGKILL" in str(outcome.error)
        assert "older checkpoints are as they were" in str(outcome.error)
        assert outcome.exit_code == 1
    assert os.listdir(checkpoints) == []
    for rank in (0, 1):
        submit(writers[rank], checkpoints, state, rank, 2)
    assert [writer.wait(SECONDS).error for writer in writers] == [None, None]  # type: ignore[union-attr]
    assert same(checkpoints / "step-00000100", state)


def test_whatever_goes_wrong_whoever_waits_hears_of_it(
    checkpoints: Path, new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("unheard of")

    monkeypatch.setattr(BackgroundWriter, "_write", refuse)
    writer = new_writer()
    submit(writer, checkpoints, make_state())
    assert writer.wait(SECONDS) == Outcome(100, error="ValueError: unheard of")


def test_a_process_that_cannot_be_started_is_told(
    checkpoints: Path, new_writer: NewWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    writer = new_writer()
    submit(writer, checkpoints, make_state())
    assert "could not be started (No such file or directory)" in str(writer.wait(SECONDS).error)  # type: ignore[union-attr]


def kill_next(writer: BackgroundWriter) -> None:
    """Kill the writer's next process as soon as it is there."""

    def kill() -> None:
        process_of(writer).kill()

    threading.Thread(target=kill, daemon=True).start()


def test_a_save_that_cannot_become_whole_is_aborted(checkpoints: Path, new_writer: NewWriter) -> None:
    state, writer = make_state(), new_writer()
    writer.abort("there is none")
    submit(writer, checkpoints, state, 0, 2)
    assert writer.wait(0.5) is None, "rank 1 is waited for"
    writer.abort("rank 1 cannot write")
    outcome = writer.wait(SECONDS)
    assert outcome is not None
    assert outcome.error == "rank 1 cannot write"
    assert os.listdir(checkpoints) == []
    submit(writer, checkpoints, state)
    assert writer.wait(SECONDS).error is None  # type: ignore[union-attr]


def test_closing_ends_the_process_in_the_middle_of_a_job(checkpoints: Path, new_writer: NewWriter) -> None:
    writer = new_writer()
    submit(writer, checkpoints, make_state(), 0, 2)
    process = process_of(writer)
    writer.close()
    assert not process.is_running()
    assert "was ended by its worker" in str(writer.wait().error)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="closed"):
        writer.arena(1)
    writer.close()


def test_the_process_heeds_no_signal_that_goes_to_the_whole_group(
    checkpoints: Path, new_writer: NewWriter
) -> None:
    writer = new_writer()
    submit(writer, checkpoints, make_state(), 0, 2)
    process = process_of(writer)
    for _ in range(20):  # from its first moment on
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(kind)
        time.sleep(0.01)
    fail_share(checkpoints, 100, f"{100:08x}", 1, 2, "no more", 2)
    outcome = writer.wait(SECONDS)
    assert outcome is not None
    assert (outcome.error, outcome.exit_code) == ("no more", 2)
    assert process.is_running()
    assert process.nice() == writing.NICENESS == 19


def test_a_lock_is_held_until_the_process_is_gone(
    checkpoints: Path, tmp_path: Path, new_writer: NewWriter
) -> None:
    ours, theirs = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    fcntl.flock(ours, fcntl.LOCK_EX)
    writer = new_writer(ours)
    submit(writer, checkpoints, make_state())
    writer.wait(SECONDS)
    os.close(ours)
    with pytest.raises(BlockingIOError):
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    writer.close()
    fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(theirs)


def test_the_process_loads_little_and_starts_at_once() -> None:
    program = (
        "import sys, checkpoint.writing; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    best = min(_timed([sys.executable, "-P", "-c", program]) for _ in range(3))
    assert best < 0.6, "0.1 s on an idle machine"


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
    return time.perf_counter() - began


def test_jobs_and_outcomes_cross_unchanged(checkpoints: Path) -> None:
    state = make_state()
    slots = fill(lambda size: memoryview(bytearray(size)), share_of(state, 0, 1))
    job = job_of(checkpoints, state, slots)
    assert job.commit is not None
    scores = {5: 1.5, 100: float("inf")}
    object.__setattr__(job.commit, "retention", Retention(keep_every=7, keep_best=2, scores=scores))
    for group in job.commit.facts["groups"]:
        group["hyperparameters"]["betas"] = [0.9, 0.95]
    assert decode_job(encode_job(job)) == job
    outcome = Outcome(7, "no", 2, 1.5, 10, "ab", (1, 2), "hm")
    assert decode_outcome(encode_outcome(outcome)) == outcome
    assert job.save_id == SAVE_ID


def test_a_fact_that_json_does_not_know_is_refused_at_once(checkpoints: Path, new_writer: NewWriter) -> None:
    state, writer = make_state(), new_writer()
    slots = fill(writer.arena, share_of(state, 0, 1))
    with pytest.raises(TypeError, match="not JSON serializable"):
        writer.submit(job_of(checkpoints, state, slots, extra={"scale": np.float32(1)}))
    assert not writer.busy
