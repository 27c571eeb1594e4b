"""Umbel's own parts, put together as `train.session.Session` does."""

from __future__ import annotations

from pathlib import Path

from checkpoint.format import step_name
from record.identity import run_id
from savers import Bench
from train.cadence import Cadence
from train.engine import build_engine
from train.hooks.checkpoints import Checkpoints
from train.loop import StepRecord
from train.position import Position
from train.restoring import find, load
from train.saving import Saver


class Ours:
    """Copies beside the next step; a process of its own writes, hashes and fsyncs."""

    build = staticmethod(build_engine)
    beside = True
    overrides: tuple[str, ...] = ()
    requires: tuple[str, ...] = ("umbel",)

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        if bench.world.is_first:
            run_id(bench.folder)
        bench.world.barrier()
        self.run_id = run_id(bench.folder)
        self.saver = Saver(bench.config, bench.world, bench.folder, self.run_id, bench.stream, bench.engine)
        cadence = Cadence(bench.config.checkpoint, bench.config.cluster)
        self.checkpoints = Checkpoints(self.saver, cadence, bench.stop, Position(), bench.metrics.flush)
        self.last = Path()

    def after_step(self, record: StepRecord) -> None:
        if record.save:
            self.last = self.saved(record.position.step)
        self.checkpoints.after_step(record)

    def finish(self) -> float:
        self.saver.drain()
        # Its last act is a rename, which is when a folder's inode changes last.
        return self.last.stat().st_ctime

    def saved(self, step: int) -> Path:
        return self.bench.folder.checkpoints / step_name(step)

    def load(self, checkpoint: Path) -> None:
        """As a start: look for the newest that verifies, with all hashes, and load it."""
        bench = self.bench
        found = find(bench.config, bench.world, bench.folder, self.run_id)
        if found != checkpoint:
            raise FileNotFoundError(f"{checkpoint} was not found")
        load(found, bench.config, bench.world, bench.engine, bench.stream, self.run_id, None)

    def close(self) -> None:
        self.saver.close()


class Synchronous(Ours):
    """The same with the training held until the disk has it (`checkpoint.asynchronous: false`)."""

    beside = False
    overrides = ("checkpoint.asynchronous=false",)
