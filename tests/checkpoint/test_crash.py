"""kill -9 while saving: the newest whole checkpoint is always found, and what is left over is removed."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from checkpoint.folders import steps
from checkpoint.job import Outcome
from checkpoint.messages import decode_outcome
from checkpoint.reader import latest
from checkpoint.verify import verify
from checkpoint.writer import clean

SAVER = Path(__file__).with_name("crashing_saver.py")
KILLS = int(os.environ.get("KILLS", "50"))
WORLD_SIZE = 2
VICTIMS = ("writer 0", "writer 1", "writer 0", "writer 1", "worker 0", "worker 1", "all")
SECONDS = 30


def _saver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crashing_saver", SAVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Worker:
    """One rank of a run that only saves; its background writer is its only child."""

    def __init__(self, checkpoints: Path, rank: int, lock: Path) -> None:
        command = [sys.executable, str(SAVER), str(checkpoints), "rank", str(rank), "of", str(WORLD_SIZE)]
        self.process = subprocess.Popen(
            [*command, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def read(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode())
        self.process.stdin.flush()

    def writers(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children()
        return []

    def kill(self) -> None:
        """The worker alone: what becomes of its writer is what is tested."""
        self.process.kill()
        with self.process:
            pass  # the pipes are closed and its end is waited for


class Run:
    """Two workers, started anew when they were killed, as a launcher does: all of them, once all are dead."""

    def __init__(self, checkpoints: Path, lock: Path) -> None:
        self.checkpoints, self.lock = checkpoints, lock
        self.workers: list[Worker] = []
        self.writers: set[psutil.Process] = set()

    def start(self) -> None:
        self._wait_for_the_lock()
        clean(self.checkpoints)
        self.workers = [Worker(self.checkpoints, rank, self.lock) for rank in range(WORLD_SIZE)]
        assert [worker.read() for worker in self.workers] == [b"ready\n"] * WORLD_SIZE

    def begin(self, step: int, seed: int) -> None:
        for worker in self.workers:
            worker.send(f"{step} {seed} {seed:08x}\n")
        assert [worker.read() for worker in self.workers] == [b"submitted\n"] * WORLD_SIZE

    def kill(self, victim: str) -> None:
        self.writers.update(*(worker.writers() for worker in self.workers))
        who, _, rank = victim.partition(" ")
        if who == "writer":
            for writer in self.workers[int(rank)].writers():
                writer.kill()
                _wait_until_dead(writer)
        elif who == "worker":
            self.workers[int(rank)].kill()
        else:
            for process in [*self.writers, *self.workers]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def outcomes(self) -> list[Outcome]:
        return [decode_outcome(worker.read()) for worker in self.workers]

    def end(self) -> None:
        """Kill the workers; their writers must be gone with them."""
        for worker in self.workers:
            self.writers.update(worker.writers())
            worker.kill()
        self.workers = []
        while self.writers:
            _wait_until_dead(self.writers.pop())

    def _wait_for_the_lock(self) -> None:
        descriptor, deadline = os.open(self.lock, os.O_RDWR | os.O_CREAT), time.monotonic() + SECONDS
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                assert time.monotonic() < deadline, "the lock is still held"
                time.sleep(0.002)
        finally:
            os.close(descriptor)


def _wait_until_dead(process: psutil.Process) -> None:
    """It may be a zombie until somebody looks."""
    deadline = time.monotonic() + SECONDS
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "a writer outlived its worker"
            time.sleep(0.002)


@pytest.fixture
def run(checkpoints: Path, tmp_path: Path) -> Iterator[Run]:
    run = Run(checkpoints, tmp_path / "lock")
    yield run
    run.end()


@pytest.mark.slow
def test_killed_at_random_moments_the_newest_whole_one_is_found(run: Run, tmp_path: Path) -> None:
    saver, moments, saved, hits = _saver(), random.Random(1), -1, Counter[str]()
    step, seed, kills, usual = 0, 0, 0, 0.05
    while kills < KILLS:
        if not run.workers:
            run.start()
        seed, step = seed + 1, step + moments.choice([0, 1, 1]) or 1
        began = time.monotonic()
        run.begin(step, seed)
        if seed % 3 == 0:  # every third one is left alone: what was killed before must not be in its way
            assert [outcome.error for outcome in run.outcomes()] == [None] * WORLD_SIZE
            saved, usual = seed, 0.7 * usual + 0.3 * (time.monotonic() - began)
        else:
            victim = moments.choice(VICTIMS)
            time.sleep(1.2 * usual * moments.random() ** 2)  # a process that is warm takes less than most
            run.kill(victim)
            kills += 1
            if victim.startswith("writer"):
                outcomes = run.outcomes()
                hits["told"] += outcomes[0].error is not None
                saved = saved if outcomes[0].error else seed
                assert outcomes[0].error is None or "SIGKILL" in outcomes[0].error
            else:
                run.end()
                hits["left over"] += any(run.checkpoints.glob(".*"))
                clean(run.checkpoints)
        newest = _newest(saver, run.checkpoints)
        assert saved <= newest <= seed, f"after {victim if seed % 3 else 'a save'}: {newest} for {saved}"
        saved = newest
    run.end()
    clean(run.checkpoints)
    assert all(name.startswith("step-") for name in os.listdir(run.checkpoints))
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "lock"], "nothing is written anywhere else"
    assert sum(hits.values()) > KILLS // 4, f"the kills must have hit saves: {hits}"


def _newest(saver: ModuleType, checkpoints: Path) -> int:
    """Seed of the newest checkpoint, after comparing all of it; every other one must be whole, too."""
    found = latest(checkpoints, verify="full")
    if found is None:
        return -1
    for folder in steps(checkpoints).values():
        verify(folder)
    return saver.seed_of(found)


def test_a_writer_that_waits_for_another_rank_dies_with_its_worker(run: Run) -> None:
    worker = Worker(run.checkpoints, 0, run.lock)
    run.workers = [worker]
    assert worker.read() == b"ready\n"
    worker.send("1 1 00000001\n")
    assert worker.read() == b"submitted\n"
    deadline = time.monotonic() + SECONDS
    while not list(run.checkpoints.glob(".*/share-00001-of-00002.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(worker.writers()) == 1
    run.end()
    run.start()
    assert os.listdir(run.checkpoints) == []


@pytest.mark.slow
def test_killed_before_every_change_of_the_disk_nothing_is_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SAVER), str(tmp_path), "every"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30, "that many changes make a save and a prune"
