"""When the state is saved: every N steps, and once more where the run ends."""

from __future__ import annotations

from collections.abc import Callable

from data.streaming.lanes import Cursors
from train.engine import Engine
from train.loop import StepRecord
from train.position import Position
from train.saving import Saver


class Checkpoints:
    """Saves every ``every`` steps, after what leads up to the save is on disk.

    Args:
        before: called before each save on all processes (`Metrics.flush`, which also refuses a NaN state).
    """

    def __init__(
        self, saver: Saver, engine: Engine, every: int, saved: Position, before: Callable[[], None]
    ) -> None:
        self.saver, self.engine, self.every, self.before = saver, engine, every, before
        self.saved = self.position = saved
        self.cursors: Cursors | None = None

    def after_step(self, record: StepRecord) -> None:
        self.position, self.cursors = record.position, record.cursors
        if self.every and record.position.step % self.every == 0:
            self.save()

    def save(self) -> None:
        """Save, unless this very position is saved already."""
        self.before()
        if self.position != self.saved:
            self.saver.save(self.engine, self.position, self.cursors)
            self.saved = self.position
