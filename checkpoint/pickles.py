"""Checkpoints of other programs that hold pickles: told by their files' names, never opened."""

from __future__ import annotations

import os
from pathlib import Path

from base.errors import UmbelError

SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


def refuse_pickles(place: Path) -> None:
    """Refuse a file or folder that DeepSpeed's, Accelerate's or PyTorch's own saving left.

    Raises:
        UmbelError: it holds pickles; names the first and says what converts it.
    """
    if found := _first_pickle(place):
        raise UmbelError(
            "holds pickles, which run code when they are loaded: none is ever loaded here",
            where=str(found),
            fix="its owner, who trusts it, converts it with 'umbel checkpoint import'",
        )


def _first_pickle(place: Path) -> Path | None:
    """In the folder itself, or one below: DeepSpeed has a folder for each tag."""
    if place.is_file():
        return place if place.name.endswith(SUFFIXES) else None
    for folder, inner, names in os.walk(place):
        if found := sorted(name for name in names if name.endswith(SUFFIXES)):
            return Path(folder, found[0])
        if Path(folder) != place:
            inner.clear()
    return None
