"""Between a live engine and the portable state: what is saved, where, and how it comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from base.errors import UmbelError
from checkpoint import manifest as manifests
from checkpoint.format import step_name, step_of
from checkpoint.reader import StateReader, latest
from checkpoint.retention import prune
from checkpoint.writer import clean, commit, discard, write_share
from configs.schema import RunConfig
from data.stream import BatchStream
from data.streaming.lanes import Cursors
from record.events import record_event
from record.folder import RunFolder
from train.base_model import check_base, describe_base
from train.cursors import read_cursors
from train.distributed import World
from train.engine import Engine
from train.facts import (
    check_order,
    check_parameters,
    check_position,
    config_fingerprint,
    group_steps,
    groups_of,
    order_facts,
    software,
)
from train.portable import fragments, read_buffers, read_into, trainable_shapes
from train.position import Position


class Saver:
    """Saves and restores one run's portable state.

    Args:
        run_id: of `record.identity`; a checkpoint of another run is refused.
        stream: of the run; a checkpoint over other data, or another order so far, is refused.
    """

    def __init__(
        self, config: RunConfig, world: World, folder: RunFolder, run_id: str, stream: BatchStream
    ) -> None:
        self.config, self.world, self.folder = config, world, folder
        self.run_id, self.stream = run_id, stream
        self.base = describe_base(config.model) if world.is_first else None
        self.parent: str | None = None

    def save(self, engine: Engine, position: Position, cursors: Cursors | None = None) -> None:
        """Save collectively; every process writes what it owns, and rank 0 makes it a checkpoint.

        ``cursors`` are where this process's lanes of a streamed run stand.

        Raises:
            UmbelError: the disk is full or unwritable; earlier checkpoints stay.
        """
        began = time.perf_counter()
        checkpoints, world = self.folder.checkpoints, self.world
        if cursors is not None:
            cursors = world.sum_array(cursors)
        try:
            self._together(lambda: self._write_share(engine, position.step, cursors))
        except UmbelError:
            if world.is_first:
                discard(checkpoints, position.step)
            raise
        self._together(lambda: self._commit(engine, position, began) if world.is_first else None)

    def find(self) -> Path | None:
        """The checkpoint to go on from; clears what a killed save left. Rank 0 looks, all hear."""
        step = 0
        if self.world.is_first:
            clean(self.folder.checkpoints)
            found = latest(
                self.folder.checkpoints,
                verify=self.config.checkpoint.verify,
                run_id=self.run_id,
                warn=lambda text: record_event(self.folder, "warning", text=text),
            )
            step = (step_of(found.name) or 0) if found else 0
        step = self.world.first(step)
        return self.folder.checkpoints / step_name(step) if step else None

    def load(self, engine: Engine, checkpoint: Path) -> tuple[Position, Cursors | None]:
        """Restore a live engine from any topology's checkpoint; says where the run and its lanes stand.

        Raises:
            UmbelError: the checkpoint is of another model or base, of other data or of another order.
        """
        with StateReader(checkpoint, run_id=self.run_id) as reader:
            manifest = reader.manifest
            self._check(manifest, checkpoint)
            self._together(lambda: check_base(manifest["extra"].get("base"), self.base))
            check_parameters(manifest, engine.model, checkpoint)
            check_position(manifest, self.config.schedule, checkpoint)
            check_order(manifest, self.stream.order, checkpoint)
            cursors = read_cursors(reader, self.stream.cursors_shape) if self.stream.is_streaming else None
            for piece in engine.state.held():
                for kind, view in piece.views.items():
                    read_into(reader, piece.parameter, kind, piece.start, view)
            read_buffers(reader, engine.model)
        engine.state.loaded(group_steps(engine, manifest["groups"]))
        self.parent = manifests.digest(checkpoint)
        return Position(manifest["step"], manifest["sequences"], manifest["tokens"]), cursors

    def _together(self, work: Callable[[], object]) -> None:
        """Do a part on every process; if it fails on one, it has failed on all, and none waits in vain."""
        error: Exception | None = None
        try:
            work()
        except Exception as caught:
            error = caught
        failed = self.world.sum([int(error is not None)])[0]
        if error is not None:
            raise error
        if failed:
            raise PeerFailed("another process failed", where=str(self.folder.checkpoints))

    def _write_share(self, engine: Engine, step: int, cursors: Cursors | None) -> None:
        shapes, rank, size = trainable_shapes(engine.model), self.world.rank, self.world.size
        write_share(self.folder.checkpoints, step, rank, size, fragments(engine, cursors), shapes)

    def _commit(self, engine: Engine, position: Position, began: float) -> None:
        facts = self._facts(engine, position)
        made = commit(self.folder.checkpoints, position.step, self.world.size, facts)
        self.parent = manifests.digest(made)
        size = sum(file.stat().st_size for file in made.iterdir())
        seconds = round(time.perf_counter() - began, 3)
        record_event(self.folder, "checkpoint", step=position.step, seconds=seconds, bytes=size)
        prune(self.folder.checkpoints, self.config.checkpoint.keep_last)

    def _facts(self, engine: Engine, position: Position) -> dict[str, Any]:
        parallelism = self.config.parallelism
        return {
            "run_id": self.run_id,
            "run_name": self.config.run.name,
            **asdict(position),
            "parent": self.parent,
            "config_fingerprint": config_fingerprint(self.config),
            "data_fingerprint": self.stream.prepared.fingerprint,
            "groups": groups_of(engine),
            "software": software(),
            "topology": {
                "world_size": self.world.size,
                "zero_stage": parallelism.zero_stage,
                "engine": parallelism.engine,
            },
            "extra": {
                "institution": self.config.cluster.institution,
                "order": order_facts(self.stream.order, position.sequences),
                **({"left_out": self.stream.left_out} if self.stream.left_out else {}),
                **({"base": self.base} if self.base else {}),
            },
        }

    def _check(self, manifest: dict[str, Any], checkpoint: Path) -> None:
        if manifest["data_fingerprint"] != self.stream.prepared.fingerprint:
            raise UmbelError(
                "was trained on other data than is prepared now",
                where=str(checkpoint),
                fix="bring back the data, or start a new run under another run.name",
            )


class PeerFailed(UmbelError):
    """A step that all processes take together failed on another one, which says why."""
