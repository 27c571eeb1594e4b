"""Garbage collection at the same step on every process, where it delays nobody else."""

from __future__ import annotations

import gc

from train.loop import StepRecord


class ManualGarbageCollection:
    """Freezes what the start made, then collects the young generations every ``every`` steps."""

    def __init__(self, every: int = 200) -> None:
        self.every = every
        gc.collect()
        gc.freeze()
        gc.disable()

    def after_step(self, record: StepRecord) -> None:
        if record.position.step % self.every == 0:
            gc.collect(1)
