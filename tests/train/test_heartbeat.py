"""What a process tells of itself, at what cost, and that it never does harm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from record.folder import RunFolder
from record.heartbeats import STACK_SIGNAL, beats_folder, read_beats, stack_file
from support.processes import run_workers
from train.distributed import World
from train.heartbeat import Pulse, Silent, Told
from train.probe import Probe

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path / "run").create()
    yield folder
    shutil.rmtree(beats_folder(folder), ignore_errors=True)


def beat(run: RunFolder) -> Any:
    (found,) = read_beats(beats_folder(run))
    return found


def test_a_process_shows_from_its_first_moment(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    pulse = Pulse(run)
    assert beat(run)[:4] == (5, os.getpid(), 0, "starting")
    pulse.phase("restoring")
    assert beat(run).phase == "restoring"
    pulse.step(812)
    assert (beat(run).step, beat(run).phase) == (812, "step")
    pulse.close()
    pulse.step(813)  # harmless
    assert read_beats(beats_folder(run)) == []


def test_slurm_says_the_rank_too_but_only_in_a_step(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "3")
    Pulse(run).close()
    assert Pulse(run)._rank == 0
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert Pulse(run)._rank == 3


def test_the_wait_for_others_is_summed(run: RunFolder) -> None:
    pulse = Pulse(run)
    for step in (1, 2):
        pulse.step(step)
        time.sleep(0.03)
        pulse.met()
        time.sleep(0.2)  # its own work
    pulse.step(3)
    assert 0.06 <= beat(run).waited < 0.15


def test_a_step_costs_some_microseconds(run: RunFolder) -> None:
    pulse, best = Pulse(run), float("inf")
    pulse.join(World(0, 2, CPU, None))
    for _ in range(5):
        began = time.perf_counter()
        for step in range(1000):
            pulse.step(step)
            pulse.due()
            pulse.met(0)
        best = min(best, (time.perf_counter() - began) / 1000)
    assert best < 20e-6


def test_the_probe_takes_a_thousandth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    probe = Probe(CPU)
    assert not probe.due()
    now += 2.0
    assert probe.due()
    probe.run()
    assert probe.told == (0.0, 0)  # the first one also loads kernels
    now += 2.0
    probe.run()
    seconds, count = probe.told
    assert count == 1
    assert seconds > 0
    probe._seconds = 0.01  # such a slow device is asked every ten seconds
    now += 9.0
    assert not probe.due()
    now += 1.5
    assert probe.due()


def test_only_the_first_process_asks_and_all_work(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Pulse(run)
    assert not first.due()  # alone there is nobody to compare with
    first.join(World(0, 1, CPU, None))
    assert not first.due()
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        pulse = Pulse(run)
        pulse.join(World(rank, 2, CPU, None))
        assert pulse._probe is not None
        pulse._probe._ran -= 3
        assert pulse.due() == (rank == 0)
        for step in (1, 2, 3):
            pulse.step(step)
            pulse.met(1)
        pulse.step(4)
    assert [beat.probes for beat in read_beats(beats_folder(run))] == [2, 2]


def test_the_probe_leaves_the_random_draws_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    Probe(CPU).run()
    assert torch.equal(torch.rand(4), expected)


def test_without_a_place_to_beat_the_work_goes_on(run: RunFolder, tmp_path: Path) -> None:
    beats_folder(run).symlink_to(tmp_path)  # somebody else's
    try:
        pulse = Pulse(run)
        pulse.step(1)
        pulse.met(1)
        pulse.close()
    finally:
        beats_folder(run).unlink()
    silent = Silent()
    silent.phase("saving")
    silent.step(1)
    silent.met(1)
    assert not silent.due()


@dataclass
class Noting:
    """A hook that notes what the process told while it worked."""

    run: RunFolder
    phases: list[str]

    def after_step(self, record: Any) -> None:
        self.phases.append(beat(self.run).phase)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (2, ["step", "evaluating", "step", "evaluating"]),
        (0, ["step"] * 4),
        (None, ["step"] * 3 + ["evaluating"]),
    ],
)
def test_hooks_say_what_they_are_at_where_they_have_work(
    run: RunFolder, every: int | None, expected: list[str]
) -> None:
    pulse, hook = Pulse(run), Noting(run, [])
    told = Told(pulse, "evaluating", hook, every)
    for step in (1, 2, 3, 4):
        pulse.step(step)
        told.after_step(SimpleNamespace(position=SimpleNamespace(step=step), save=step == 4))  # type: ignore[arg-type]
        assert beat(run).phase == "step"
    assert hook.phases == expected


STUCK = """
import ctypes, sys
from pathlib import Path
from record.folder import RunFolder
from train.heartbeat import Pulse

def stuck_in_c():
    print(flush=True)
    lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex), lock(mutex)  # for ever; and it holds the lock of the interpreter

Pulse(RunFolder(Path(sys.argv[1])))
stuck_in_c()
"""


def test_stuck_in_c_with_the_interpreter_locked_it_still_shows_its_stack(run: RunFolder) -> None:
    process = subprocess.Popen([sys.executable, "-c", STUCK, str(run.path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(STACK_SIGNAL)
        file, deadline = stack_file(beats_folder(run), 0), time.monotonic() + 5
        while "stuck_in_c" not in file.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "in stuck_in_c" in file.read_text()
        assert process.poll() is None  # it lives on
    finally:
        process.kill()
        process.wait()


def waits(run: str) -> float:
    """One process comes late to each step; what each waited a step."""
    from torch import distributed as dist

    rank = dist.get_rank()
    pulse = Pulse(RunFolder(Path(run)))
    for step in range(1, 6):
        time.sleep(0.05 * rank)
        pulse.step(step)
        dist.barrier()
        pulse.met()
    waited = pulse._waited / 5
    pulse.close()
    return waited


@pytest.mark.slow
def test_who_comes_late_waits_least(run: RunFolder) -> None:
    early, late = run_workers(2, waits, str(run.path), env={"OMP_NUM_THREADS": "1"})
    assert early > 0.04
    assert late < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_times_itself_and_nobody_waits() -> None:
    probe = Probe(torch.device("cuda"))
    for _ in range(4):
        probe.run()
    torch.cuda.synchronize()
    seconds, count = probe.told
    assert count == 3
    assert 0 < seconds / count < 0.1
