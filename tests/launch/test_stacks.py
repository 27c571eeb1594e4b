"""Stacks of processes that are stuck: taken by either means, read alike, equal where they stand alike."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.supervise import dumps
from launch.supervise.dumps import take_stacks
from launch.supervise.stacks import (
    GONE,
    Frame,
    answered,
    how,
    parse,
    read_stacks,
    request_stacks,
    requests,
    stacks_folder,
)
from record.folder import RunFolder
from record.heartbeats import Beat, beats_folder, read_beats, stack_file

ROOT = Path(__file__).resolve().parents[2]

PY_SPY = """Process 4966: python worker.py
Python v3.11.7 (/opt/python/bin/python3.11)

Thread 4966 (idle): "MainThread"
    all_reduce (/v/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py:3252)
    _exception_logger.<locals>.wrapper (/v/lib/python3.11/site-packages/torch/distributed/c10d_logger.py:83)
    sum (ROOT/train/distributed.py:50)
    <module> (/data/my own (code)/run.py:13)
Thread 4970 (active): "writer"
    wait (/opt/python/lib/python3.11/threading.py:331)
"""

FAULTHANDLER = """Thread 0x00007fa670000000 (most recent call first):
  File "/opt/python/lib/python3.11/threading.py", line 331 in wait

Current thread 0x00007fa670ea6b80 (most recent call first):
  File "/v/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 3252 in all_reduce
  File "/v/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "ROOT/train/distributed.py", line 50 in sum
  File "/data/my own (code)/run.py", line 13 in <module>
"""


def test_both_tools_read_alike() -> None:
    expected = (
        Frame("torch/distributed/distributed_c10d.py", 3252, "all_reduce"),
        Frame("torch/distributed/c10d_logger.py", 83, "wrapper"),
        Frame("train/distributed.py", 50, "sum"),
        Frame("/data/my own (code)/run.py", 13, "<module>"),
    )
    assert parse(FAULTHANDLER.replace("ROOT", str(ROOT))) == expected
    assert parse(PY_SPY.replace("ROOT", str(ROOT))) == expected
    assert [frame.is_ours for frame in expected] == [False, False, True, True]
    assert str(expected[2]) == "train/distributed.py:50"


@pytest.mark.parametrize(
    "text", ["", "no dump\n", "Thread 0x1 (most recent call first):\n  <no Python frame>\n"]
)
def test_what_holds_no_stack_is_none(text: str) -> None:
    assert parse(text) == ()


def test_requests_have_numbers_and_belong_to_an_attempt(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    assert list(requests(folder, 1)) == []
    assert [request_stacks(folder, 1), request_stacks(folder, 1), request_stacks(folder, 2)] == [1, 2, 3]
    assert list(requests(folder, 1)) == [1, 2]
    assert list(requests(folder, 2)) == [3]
    place = stacks_folder(folder, 2, 3)
    assert place == tmp_path / "logs" / "attempt-0002" / "stacks-3"
    assert not answered(place, ["a"])
    assert answered(place, [])


BUSY = {
    "sleeps": "time.sleep(600)",
    "spins": "while True: pass",
    "locked": "lock(mutex), lock(mutex)",  # in C, for ever, and holds the lock of the interpreter
}
PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from record.folder import RunFolder
from train.heartbeat import Pulse

lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)

def stuck_here():
    {what}

pulse = Pulse(RunFolder(Path(sys.argv[1])))
pulse.step(812)
print(flush=True)
stuck_here()
"""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[tuple[RunFolder, list[subprocess.Popen[bytes]]]]:
    """Three ranks that are stuck, each in its way."""
    folder, processes = RunFolder(tmp_path / "run").create(), []
    try:
        for rank, what in enumerate(BUSY.values()):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM.format(what=what), str(folder.path)],
                    env=os.environ | {"RANK": str(rank)},
                    stdout=subprocess.PIPE,
                )
            )
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield folder, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(beats_folder(folder), ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("means", ["signal", "py-spy"])
def test_stuck_ranks_show_where(
    ranks: tuple[RunFolder, list[subprocess.Popen[bytes]]], monkeypatch: pytest.MonkeyPatch, means: str
) -> None:
    folder, processes = ranks
    if means == "signal":
        monkeypatch.setattr(dumps, "_py_spy", lambda *_: "")
    elif dumps._program() is None:
        pytest.skip("py-spy is not installed")
    place, beats = folder.path / "stacks", read_beats(beats_folder(folder))
    for _ in range(2):  # a second time finds the new dump, not the old one
        shutil.rmtree(place, ignore_errors=True)
        take_stacks(beats, "node-a", beats_folder(folder), place)
        assert answered(place, ["node-a"])
        assert how(place) == dict.fromkeys(range(3), means)
        for stack in read_stacks(place).values():
            assert [frame.function for frame in stack] == ["stuck_here", "<module>"]
    first = (place / "rank-00000.txt").read_text().splitlines()
    assert first[0] == f"rank 0 on node-a, process {processes[0].pid} (sleeping), by {means}"
    assert first[1].startswith("step 812, step for ")
    assert all(process.poll() is None for process in processes)


def test_a_dead_rank_and_one_that_answers_nothing_are_told_apart(tmp_path: Path) -> None:
    """A process that never asked for the signal would die of it: it is left alone."""
    plain = subprocess.Popen(["sleep", "600"])
    stopped = subprocess.Popen(["sleep", "600"])
    stopped.kill()
    stopped.wait()
    try:
        for rank in (0, 1):
            stack_file(tmp_path, rank).touch()
        beats = [
            Beat(rank, process.pid, 1, "step", time.time()) for rank, process in enumerate((plain, stopped))
        ]
        take_stacks(beats, "node-a", tmp_path, tmp_path / "stacks")
        told = how(tmp_path / "stacks")
        assert told[0].startswith("answers no signal (")
        assert told[1] == GONE
        assert read_stacks(tmp_path / "stacks") == {}
        assert plain.poll() is None
    finally:
        plain.kill()
        plain.wait()


def test_a_tool_that_hangs_or_fails_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "py-spy"
    beat = Beat(0, os.getpid(), 1, "step", time.time())
    monkeypatch.setattr(dumps, "_program", lambda: str(tool))
    monkeypatch.setattr(dumps, "PY_SPY_SECONDS", 0.2)
    for body in ("exec sleep 600", "echo no; exit 1"):
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
        assert dumps._py_spy(beat, tmp_path) == ""


def test_what_the_flight_recorder_left_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trace_1").write_bytes(b"as it is")
    monkeypatch.setenv("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(tmp_path / "trace_"))
    gone = [Beat(rank, 2**22 + 1, 1, "step", time.time()) for rank in (0, 1)]
    take_stacks(gone, "node-a", tmp_path, tmp_path / "stacks")
    assert (tmp_path / "stacks" / "nccl-00001").read_bytes() == b"as it is"
    assert not (tmp_path / "stacks" / "nccl-00000").exists()
