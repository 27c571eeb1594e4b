"""The state is saved where the loop says so, again where that failed, and once more where the run ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from data.streaming.lanes import Cursors
from train.cadence import Cadence
from train.loop import StepRecord
from train.position import Position
from train.saving import Saver
from train.stop import StopRequest

ATTEMPTS = 2
"""Saves that may fail one after another before the run stops: a full disk stays so, a writer is replaced."""


class Checkpoints:
    """Saves after what leads up to the save is on the disk.

    Args:
        begun: position of the checkpoint the run goes on from.
        before: called before each save on all processes (`Metrics.flush`, which also refuses a NaN state).
        wanted: whether somebody asked for a save since the last time; asked on rank 0, before each step.
    """

    def __init__(
        self,
        saver: Saver,
        cadence: Cadence,
        stop: StopRequest,
        begun: Position,
        before: Callable[[], None],
        wanted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.saver, self.cadence, self.stop = saver, cadence, stop
        self.before, self.wanted = before, wanted
        self.begun = self.position = begun
        self.cursors: Cursors | None = None

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` is to be saved; asked on rank 0, before the step."""
        return self.wanted() or self.saver.failures > 0 or self.cadence.due(step, time.monotonic())

    def after_step(self, record: StepRecord) -> None:
        self.position, self.cursors = record.position, record.cursors
        self.saver.poll()
        if self.saver.failures >= ATTEMPTS:
            self.stop.ask("no checkpoint could be written")
        if record.save:
            self._save()

    def finish(self) -> None:
        """Save where the run ends, and wait until it is on the disk. Collective.

        After saves that failed on the way this is the last try.

        Raises:
            UmbelError: it could not be written; earlier checkpoints are as they were.
        """
        self._save(last=True)
        self.saver.drain()

    def _save(self, last: bool = False) -> None:
        self.before()
        if self.position != self.begun and self.saver.save(self.position, self.cursors, last=last):
            self.begun = self.position
