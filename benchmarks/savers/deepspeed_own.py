"""DeepSpeed's own `save_checkpoint`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from savers import Bench
from train.engine import build_engine
from train.loop import StepRecord


class DeepSpeed:
    """Holds the training until its files are written, but never asks the disk whether it has them.

    That is asked here, for the time until it is durable.
    """

    build = staticmethod(build_engine)
    beside = False
    overrides: tuple[str, ...] = ()
    requires: tuple[str, ...] = ("deepspeed",)

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.engine: Any = bench.engine
        self.last = Path()

    def after_step(self, record: StepRecord) -> None:
        if record.save:
            self.last = self.saved(record.position.step)
            self.write(self.last)

    def write(self, folder: Path) -> None:
        self.engine.engine.save_checkpoint(str(folder.parent), tag=folder.name)

    def finish(self) -> float:
        fsync_all(self.last)
        return time.time()

    def saved(self, step: int) -> Path:
        return self.bench.place(step)

    def load(self, checkpoint: Path) -> None:
        path, _ = self.engine.engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        if path is None:
            raise FileNotFoundError(f"{checkpoint} was not found")

    def close(self) -> None: ...


def fsync_all(folder: Path) -> None:
    for file in folder.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
