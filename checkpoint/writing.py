"""Writing one rank's part of a save; as a program, the process beside a worker that does so.

``python -P -m checkpoint.writing CHANNEL ARENA PARENT`` (two descriptors and a process id) reads jobs from
the channel and answers each with its outcome, until the channel or its parent is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from base.errors import UmbelError
from checkpoint import manifest as manifests
from checkpoint.arena import Arena
from checkpoint.folders import discard
from checkpoint.format import step_of
from checkpoint.fragment import Fragment
from checkpoint.job import Outcome, SaveJob, Slot
from checkpoint.messages import decode_job, encode_outcome
from checkpoint.retention import Retention, prune
from checkpoint.safetensors import tensor_bytes
from checkpoint.writer import commit, fail_share, patience, write_share

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Sent to whole process groups; the worker decides what they mean, and ends this process if need be."""

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal a process gets when its parent dies."""

NICENESS = 19
"""The lowest: where no core is free, training keeps 98 % of its own (sched(7): weights of 1024 and 15)."""


def run(job: SaveJob, arena: memoryview) -> Outcome:
    """Write what lies in the arena; see :func:`run_job`."""
    return run_job(job, [_fragment(slot, arena) for slot in job.slots])


def run_job(job: SaveJob, fragments: Iterable[Fragment]) -> Outcome:
    """Write a rank's share; on rank 0 wait for all others', make them a checkpoint, let older ones go.

    Never raises: what went wrong is in the outcome, and the other ranks hear of it.
    """
    began = time.monotonic()
    try:
        outcome = _write(job, fragments)
    except Exception as error:
        if not isinstance(error, UmbelError):
            traceback.print_exc()
        outcome = failed(job, one_line(error), getattr(error, "exit_code", 1))
    return outcome._replace(seconds=time.monotonic() - began)


def failed(job: SaveJob, error: str, exit_code: int = 1) -> Outcome:
    """Give a save up: rank 0 removes it, any other rank leaves word for rank 0."""
    with suppress(OSError):
        if job.commit is not None:
            discard(job.checkpoints, job.step, job.save_id)
        else:
            where = job.checkpoints, job.step, job.save_id
            fail_share(*where, job.rank, job.world_size, error, exit_code)
    return Outcome(job.step, error=error, exit_code=exit_code)


def one_line(error: Exception) -> str:
    if isinstance(error, UmbelError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _write(job: SaveJob, fragments: Iterable[Fragment]) -> Outcome:
    where = job.checkpoints, job.step, job.save_id
    written = write_share(
        *where, job.rank, job.world_size, fragments, job.parameters, total_bytes=job.total_bytes
    )
    if job.commit is None:
        return Outcome(job.step, bytes=written)
    folder = commit(*where, job.world_size, job.commit.facts, wait=patience())
    size = sum(file.stat().st_size for file in folder.iterdir())
    outcome = Outcome(job.step, bytes=size, digest=manifests.digest(folder))
    return _let_go(job.checkpoints, job.commit.retention, outcome)


def _let_go(checkpoints: Path, retention: Retention, outcome: Outcome) -> Outcome:
    """The save stands, whether or not older ones can go."""
    try:
        deleted = [step_of(folder.name) for folder in prune(checkpoints, retention)]
    except Exception as error:
        return outcome._replace(warning=f"older checkpoints stay: {one_line(error)}")
    return outcome._replace(deleted=tuple(step for step in deleted if step is not None))


def _fragment(slot: Slot, arena: memoryview) -> Fragment:
    data = arena[slot.offset : slot.offset + tensor_bytes(slot.dtype, slot.shape)]
    return Fragment(slot.parameter, slot.kind, slot.start, data, slot.dtype, slot.shape)


def main(channel: int, arena: int, parent: int) -> None:
    """Serve one worker for its life."""
    for kind in SIGNALS:
        signal.signal(kind, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before the kernel knew whom to watch
    os.nice(NICENESS)
    memory = Arena(arena)
    with socket.socket(fileno=channel) as connection, connection.makefile("rb") as jobs:
        for line in jobs:
            connection.sendall(encode_outcome(run(decode_job(line), memory.view())))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
