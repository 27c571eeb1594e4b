"""What this process is doing, for those who watch it from outside, and its stack for when it hangs."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from base.errors import UmbelError
from record.folder import RunFolder
from record.heartbeats import STACK_SIGNAL, Heart, make_beats_folder, stack_file
from train.probe import Probe

if TYPE_CHECKING:
    from train.distributed import World
    from train.loop import Hook, StepRecord

_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x59616D61, -1
"""prctl(2): which process may look into this one, where only its parents may (Yama)."""


class Pulse:
    """Tells phase and step of this process. Costs a few microseconds a step and never fails.

    Made first of all, before the processes meet: where they do not meet, it shows.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._heart: Heart | None = None
        self._probe: Probe | None = None
        self._phase, self._step = "starting", 0
        self._waited = self._entered = 0.0
        self._rank = _rank()
        with contextlib.suppress(OSError, UmbelError):
            place = make_beats_folder(folder)
            # First: whoever finds a beat may ask for its stack.
            _answer_with_stacks(place, self._rank)
            self._heart = Heart(place, self._rank)
        self._beat()

    def join(self, world: World) -> None:
        """The processes have met; from now on their devices can be compared."""
        if world.size > 1:
            self._probe = Probe(world.device)

    def phase(self, name: str) -> None:
        """This process begins something of ``record.heartbeats.PHASES``."""
        self._phase = name
        self._beat()

    def step(self, step: int) -> None:
        """This process has what it needs for a step, and now meets the others."""
        self._phase, self._step = "step", step
        self._beat()
        self._entered = time.perf_counter()

    def due(self) -> bool:
        """Whether all are to time their devices now; only the first process ever says so."""
        return self._rank == 0 and self._probe is not None and self._probe.due()

    def met(self, probe: int = 0) -> None:
        """The others have come. ``probe``: whether they agreed to time their devices."""
        self._waited += time.perf_counter() - self._entered
        if probe and self._probe is not None:
            self._probe.run()

    def close(self) -> None:
        """This process ends in order: nobody need look for it."""
        heart, self._heart = self._heart, None
        if heart is not None:
            heart.close()

    def _beat(self) -> None:
        if self._heart is not None:
            worked = self._probe.told if self._probe is not None else (0.0, 0)
            self._heart.beat(self._phase, self._step, self._waited, *worked)


class Silent(Pulse):
    """Tells nobody: for loops that nobody watches."""

    def __init__(self) -> None:
        self._heart = self._probe = None
        self._phase, self._step, self._rank = "starting", 0, 0
        self._waited = self._entered = 0.0


class Told:
    """A hook that says what it is at, at those steps where it has work.

    Args:
        phase: what the hook's work is.
        every: it works at steps divisible by this, or never; None: where a step is to be saved.
    """

    def __init__(self, pulse: Pulse, phase: str, hook: Hook, every: int | None = None) -> None:
        self.pulse, self.phase, self.hook, self.every = pulse, phase, hook, every

    def after_step(self, record: StepRecord) -> None:
        if not self._has_work(record):
            self.hook.after_step(record)
            return
        self.pulse.phase(self.phase)
        self.hook.after_step(record)
        self.pulse.phase("step")

    def _has_work(self, record: StepRecord) -> bool:
        if self.every is None:
            return record.save
        return self.every > 0 and record.position.step % self.every == 0


def _rank() -> int:
    """Known before the processes meet, from torchrun's variables or Slurm's; 0 for a process alone."""
    in_step = "SLURM_STEP_ID" in os.environ
    return int(os.environ.get("RANK") or (in_step and os.environ.get("SLURM_PROCID")) or 0)


def _answer_with_stacks(place: Path, rank: int) -> None:
    """Write the stacks of all threads to a file at a signal, even while stuck in C; let py-spy look, too."""
    descriptor = os.open(
        stack_file(place, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600
    )
    faulthandler.register(STACK_SIGNAL, file=descriptor, all_threads=True)
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
