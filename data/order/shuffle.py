"""Endless shuffles by index: any element at the same small cost, next to nothing stored."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from functools import cache
from importlib.metadata import version
from typing import Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt

from base.errors import UmbelError

SMALL = 1 << 18
"""Below this length a round is drawn at once, a megabyte; beyond it grain's cipher finds each element in some
8 microseconds (and short lengths, for which it is not made, in milliseconds)."""

ROUNDS = 4
"""Rounds that are kept: readers who are not quite level are in two or three of them."""


PROBED = (0, 1, 2, 999_999, 1_000_003, 1_500_000)
SHUFFLED = [132387, 249047, 9763, 6604, 337836, 127101]
"""What grain 0.2.18 gives at those indices."""


Numbers = npt.NDArray[np.int64]


class Shuffled(Protocol):
    """The numbers 0 … length − 1 in a random order, then all of them in another, and so on."""

    def __getitem__(self, index: int) -> int: ...

    def take(self, indices: Numbers) -> Numbers:
        """Several elements."""


def shuffled(length: int, seed: str) -> Shuffled:
    """The endless shuffle of ``range(length)`` that ``seed`` names: the same on every machine."""
    if length < SMALL:
        return _Drawn(length, seed)
    _check_grain()
    if _is_lossy(length):
        return _Walked(length, _Grain(length + 1, crc32(seed.encode())))
    return _Grain(length, crc32(seed.encode()))


@cache
def _check_grain() -> None:
    """Refuse a version of grain whose cipher gives another order: runs would go on with other data."""
    if _Grain(1_000_003, 2026).take(np.array(PROBED)).tolist() != SHUFFLED:
        raise UmbelError(
            f"version {version('grain')} shuffles otherwise than the one that runs began with",
            where="grain",
            fix="install the version of constraints.txt",
        )


def _is_lossy(length: int) -> bool:
    """Whether the length is 4^k + 1: there grain 0.2.18 gives one number twice, and the last one never."""
    return length.bit_count() == 2 and length & 1 == 1 and length.bit_length() % 2 == 1


class _OneByOne(ABC):
    """A shuffle that gives single elements."""

    @abstractmethod
    def __getitem__(self, index: int) -> int: ...

    def take(self, indices: Numbers) -> Numbers:
        return np.array([self[index] for index in indices.tolist()], np.int64)


class _Grain(_OneByOne):
    """grain's cipher."""

    def __init__(self, length: int, seed: int) -> None:
        # Without jax, which nothing here needs, grain warns at import.
        logging.getLogger("absl").setLevel(logging.ERROR)
        from grain import MapDataset

        self._elements = MapDataset.range(length).shuffle(seed=seed).repeat()

    def __getitem__(self, index: int) -> int:
        return int(self._elements[index])


class _Walked(_OneByOne):
    """A shuffle of one number more, in which that number is passed by: what it stands for is what follows."""

    def __init__(self, length: int, longer: Shuffled) -> None:
        self._length, self._longer = length, longer

    def __getitem__(self, index: int) -> int:
        number, inner = divmod(index, self._length)
        start = number * (self._length + 1)
        found = self._longer[start + inner]
        while found == self._length:
            found = self._longer[start + found]
        return int(found)


class _Drawn:
    """Rounds sorted by random keys, from a hash: of all generators the one whose output is a standard."""

    def __init__(self, length: int, seed: str) -> None:
        self._length, self._seed = length, seed
        self._rounds: OrderedDict[int, npt.NDArray[np.int32]] = OrderedDict()

    def __getitem__(self, index: int) -> int:
        number, inner = divmod(index, self._length)
        return int(self._round(number)[inner])

    def take(self, indices: Numbers) -> Numbers:
        numbers, inner = np.divmod(indices, self._length)
        found = np.empty_like(indices)
        for number in set(numbers.tolist()):
            among = numbers == number
            found[among] = self._round(number)[inner[among]]
        return found

    def _round(self, number: int) -> npt.NDArray[np.int32]:
        order = self._rounds.get(number)
        if order is None:
            order = self._rounds[number] = self._draw(number)
            while len(self._rounds) > ROUNDS:
                self._rounds.popitem(last=False)
        return order

    def _draw(self, number: int) -> npt.NDArray[np.int32]:
        digest = hashlib.shake_128(f"{self._seed} {number}".encode()).digest(8 * self._length)
        return np.argsort(np.frombuffer(digest, "<u8"), kind="stable").astype(np.int32)
