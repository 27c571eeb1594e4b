"""Which checkpoints stay."""

from __future__ import annotations

from pathlib import Path

from base.errors import UmbelError
from checkpoint.folders import delete, steps
from checkpoint.format import Damaged
from checkpoint.verify import Mode, verify


def prune(checkpoints: Path, keep_last: int, *, mode: Mode = "sizes") -> list[Path]:
    """Delete every checkpoint older than the newest ``keep_last`` valid ones; return what was deleted.

    Damaged ones do not count, so the only valid one always stays; a kill in between loses nothing more.

    Raises:
        UmbelError: ``keep_last`` is less than 1.
        Foreign: a checkpoint of a newer format version; nothing is deleted.
    """
    if keep_last < 1:
        raise UmbelError(
            "at least one checkpoint must be kept", where=f"keep_last={keep_last}", fix="say 1 or more"
        )
    valid = 0
    spare: list[Path] = []
    for folder in steps(checkpoints).values():
        if valid == keep_last:
            spare.append(folder)
        else:
            valid += _is_valid(folder, mode)
    for folder in reversed(spare):
        delete(folder)
    return spare


def _is_valid(folder: Path, mode: Mode) -> bool:
    try:
        verify(folder, mode)
    except Damaged:
        return False
    return True
