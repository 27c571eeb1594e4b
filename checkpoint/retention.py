"""Which checkpoints stay."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from math import isfinite
from pathlib import Path

from base.errors import UmbelError
from checkpoint.folders import delete, steps
from checkpoint.format import Damaged
from checkpoint.hold import unheld
from checkpoint.verify import Mode, verify


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints stay: the newest ones, every so many steps, the best by held-out loss.

    ``scores``: mean held-out loss by step, of those steps that were evaluated.
    """

    keep_last: int = 3
    keep_every: int | None = None
    keep_best: int = 0
    scores: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, least in (("keep_last", 1), ("keep_every", 1), ("keep_best", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UmbelError(f"must be {least} or more, not {value}", where=key)


def staying(
    there: Iterable[int], keep: Retention, is_valid: Callable[[int], bool] = lambda _: True
) -> set[int]:
    """The steps, of those there, whose checkpoints stay.

    - all from the ``keep_last``-th newest valid one on: damaged ones do not count, and newer ones are left
      for a human to look at; so the only valid one always stays, and the newest does;
    - those of steps that ``keep_every`` divides;
    - the ``keep_best`` valid ones with the lowest scores, the newer of two equal ones; NaN is no score.

    Args:
        is_valid: asked of no more steps than the answer needs.
    """
    newest_first = sorted(there, reverse=True)
    counted = list(islice(filter(is_valid, newest_first), keep.keep_last))
    if len(counted) < keep.keep_last:
        return set(newest_first)
    scored = [step for step in newest_first if isfinite(keep.scores.get(step, float("nan")))]
    scored.sort(key=lambda step: keep.scores[step])
    return (
        {step for step in newest_first if step >= counted[-1]}
        | {step for step in newest_first if keep.keep_every and step % keep.keep_every == 0}
        | set(islice(filter(is_valid, scored), keep.keep_best))
    )


def prune(checkpoints: Path, keep: Retention, *, mode: Mode = "sizes") -> list[Path]:
    """Delete the checkpoints that need not stay, but none that somebody holds; return what was deleted.

    The oldest goes first, so a kill in between loses nothing more. A checkpoint that was found valid once is
    not looked into again while size and time of its files stay as they are.

    Raises:
        Foreign: a checkpoint of a newer format version; nothing is deleted.
    """
    there = steps(checkpoints)
    stay = staying(there, keep, lambda step: _is_valid(there[step], _look(there[step]), mode))
    deleted = []
    for step in sorted(there.keys() - stay):
        with unheld(there[step]) as free:
            if free:
                delete(there[step])
                deleted += [] if there[step].exists() else [there[step]]
    return deleted


def _look(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, size and time of change of every file."""
    found = []
    for path in sorted(os.scandir(folder), key=lambda path: path.name):
        status = path.stat(follow_symlinks=False)
        found.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


@lru_cache(maxsize=64)
def _is_valid(folder: Path, _seen: tuple[tuple[str, int, int, int], ...], mode: Mode) -> bool:
    try:
        verify(folder, mode)
    except Damaged:
        return False
    return True
