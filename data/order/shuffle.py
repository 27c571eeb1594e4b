"""Endless shuffles by index: any element at the same small cost, nothing stored."""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache
from typing import Protocol, cast
from zlib import crc32

import numpy as np
import numpy.typing as npt

SMALL = 4096
"""Below this length grain's cipher, made for large ones, takes up to milliseconds for an element."""


class Shuffled(Protocol):
    """The numbers 0 … length − 1 in a random order, then all of them in another, and so on."""

    def __getitem__(self, index: int) -> int: ...


def shuffled(length: int, seed: str) -> Shuffled:
    """The endless shuffle of ``range(length)`` that ``seed`` names: the same on every machine."""
    if length < SMALL:
        return _Small(length, seed)
    # Without jax, which nothing here needs, grain warns at import.
    logging.getLogger("absl").setLevel(logging.ERROR)
    from grain import MapDataset

    endless = MapDataset.range(length).shuffle(seed=crc32(seed.encode())).repeat()
    return cast(Shuffled, endless)


class _Small:
    def __init__(self, length: int, seed: str) -> None:
        self.length, self.seed = length, seed

    def __getitem__(self, index: int) -> int:
        round_, inner = divmod(index, self.length)
        return int(_order(self.length, f"{self.seed} {round_}")[inner])


@lru_cache(maxsize=512)
def _order(length: int, seed: str) -> npt.NDArray[np.int64]:
    """Sorted by random keys. Of the generators at hand a hash is the one whose output is a standard."""
    keys = np.frombuffer(hashlib.shake_128(seed.encode()).digest(8 * length), "<u8")
    return np.argsort(keys, kind="stable")
