"""What a worker asks of the process that writes its share of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint.retention import Retention


class Slot(NamedTuple):
    """One fragment of the state and where its bytes lie in the arena, the memory that both processes share.

    ``start``, ``dtype`` and ``shape`` are those of :class:`checkpoint.fragment.Fragment`; ``offset`` is a
    byte of the arena, a multiple of :data:`checkpoint.arena.ALIGNMENT`.
    """

    parameter: str
    kind: str
    start: int
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What rank 0 adds, to make a checkpoint of all ranks' shares.

    ``facts`` are the keys of ``checkpoint.schema.FACTS``.
    """

    facts: dict[str, Any]
    retention: Retention


@dataclass(frozen=True, kw_only=True)
class SaveJob:
    """One rank's part of one save.

    Args:
        save_id: 8 hexadecimal digits, the same on all ranks and of this save alone: a share that an earlier,
            killed save of the same step left is never taken for one of this.
        parameters: full shape of every parameter that is stored, trained or frozen, the same on all ranks.
        total_bytes: of all ranks' fragments.
        commit: on rank 0 alone.
    """

    checkpoints: Path
    step: int
    save_id: str
    rank: int
    world_size: int
    slots: list[Slot]
    parameters: dict[str, list[int]]
    total_bytes: int
    commit: Commit | None = None


class Outcome(NamedTuple):
    """How a save ended for one rank: its share is on the disk; on rank 0 it is a checkpoint.

    ``error`` is None, or the one line, with ``exit_code``. ``seconds`` from the job's arrival. ``bytes`` of
    this rank's files, on rank 0 of the whole checkpoint. ``digest`` (rank 0): sha256 of the manifest.
    ``deleted`` (rank 0): steps that retention let go; ``warning``: why it could not.
    """

    step: int
    error: str | None = None
    exit_code: int = 1
    seconds: float = 0.0
    bytes: int = 0
    digest: str | None = None
    deleted: tuple[int, ...] = ()
    warning: str | None = None
