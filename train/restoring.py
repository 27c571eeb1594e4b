"""How a run goes on: its newest whole checkpoint, from any topology, into a live engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from base.errors import UmbelError
from checkpoint.folders import clean, steps
from checkpoint.format import Damaged, step_name
from checkpoint.reader import StateReader
from checkpoint.verify import verify
from configs.schema import RunConfig
from data.stream import BatchStream
from data.streaming.lanes import Cursors
from record.events import record_event
from record.folder import RunFolder
from train.base_model import Base, check_base
from train.cursors import read_cursors
from train.distributed import World
from train.engine import Engine
from train.facts import check_order, check_parameters, check_position, restore_optimizer
from train.portable import read_state
from train.position import Position
from train.together import together


class Restored(NamedTuple):
    """Where a run stands after it was brought back. ``digest``: the identity of the checkpoint."""

    position: Position = Position()
    cursors: Cursors | None = None
    digest: str | None = None


def find(config: RunConfig, world: World, folder: RunFolder, run_id: str) -> Path | None:
    """The newest checkpoint that verifies, or None; clears what a killed save left. Collective.

    All processes share the hashing. A damaged checkpoint is passed by, with a warning in events.jsonl.

    Raises:
        Foreign: the newest whole one is of a newer format, or of another run.
    """
    there: list[int] = []
    if world.is_first:
        clean(folder.checkpoints)
        there = list(steps(folder.checkpoints))
    for index in range(world.first(len(there))):
        path = folder.checkpoints / step_name(world.first(there[index] if world.is_first else 0))
        if _is_whole(path, config, world, folder, run_id):
            return path
    return None


def _is_whole(path: Path, config: RunConfig, world: World, folder: RunFolder, run_id: str) -> bool:
    damage: list[Damaged] = []

    def check() -> None:
        try:
            verify(path, config.checkpoint.verify, run_id=run_id, part=(world.rank, world.size))
        except Damaged as error:
            damage.append(error)

    together(world, check, str(path))
    mine = [0] * world.size
    mine[world.rank] = len(damage)
    finders = [rank for rank, found in enumerate(world.sum(mine)) if found]
    if finders and finders[0] == world.rank:
        record_event(folder, "warning", text=f"checkpoint passed by: {damage[0]}")
    return not finders


def load(
    checkpoint: Path,
    config: RunConfig,
    world: World,
    engine: Engine,
    stream: BatchStream,
    run_id: str,
    base: Base | None,
) -> Restored:
    """Fill a live engine from any topology's checkpoint; each process reads only what it holds. Collective.

    Raises:
        UmbelError: the checkpoint is of another model or base, of other data or of another order.
    """
    with StateReader(checkpoint, run_id=run_id) as reader:
        manifest = reader.manifest
        _check_data(manifest, stream, checkpoint)
        together(world, lambda: check_base(manifest["extra"].get("base"), base), str(checkpoint))
        check_parameters(manifest, engine.model, checkpoint)
        check_position(manifest, config.schedule, checkpoint)
        check_order(manifest, stream.order, checkpoint)
        cursors = read_cursors(reader, stream.cursors_shape) if stream.is_streaming else None
        read_state(reader, engine)
        digest = reader.digest
    restore_optimizer(engine, manifest)
    position = Position(manifest["step"], manifest["sequences"], manifest["tokens"])
    return Restored(position, cursors, digest)


def _check_data(manifest: dict[str, Any], stream: BatchStream, checkpoint: Path) -> None:
    if manifest["data_fingerprint"] != stream.prepared.fingerprint:
        raise UmbelError(
            "was trained on other data than is prepared now",
            where=str(checkpoint),
            fix="bring back the data, or start a new run under another run.name",
        )
