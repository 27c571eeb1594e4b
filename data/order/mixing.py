"""Which source gives the n-th row of a mixture, in closed form: any n costs the same, nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

RESOLUTION = 1 << 40
"""Weights are rounded to this part of their sum."""


class Pick(NamedTuple):
    """A row: the source's name and the ordinal among the rows the run takes from it."""

    source: str
    ordinal: int


class Mixing:
    """Rows of several endless sources, interleaved so that every prefix has each one's share.

    After any number of rows each source is within one row per source of its share. Source by source, the
    rows that remain are split as evenly as whole numbers allow, as grain's ``MapDataset.mix`` does; written
    out here because phases need the counts at a point, which grain does not give.

    Args:
        weights: relative shares; sources of weight 0 give nothing.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        # Sorted, so that the order of keys in a YAML file is no part of the run.
        self.sources = sorted(name for name, weight in weights.items() if weight > 0)
        total = sum(weights[name] for name in self.sources)
        parts = [max(1, round(weights[name] / total * RESOLUTION)) for name in self.sources]
        self._rests = [(sum(parts[index:]), sum(parts[index + 1 :])) for index in range(len(parts))]

    def pick(self, n: int) -> Pick:
        """The source of row ``n``, and how many rows that source gave before it."""
        before, after = n, n + 1
        for name, (whole, rest) in zip(self.sources, self._rests, strict=True):
            left_before, left_after = before * rest // whole, after * rest // whole
            if left_after == left_before:
                return Pick(name, before - left_before)
            before, after = left_before, left_after
        raise AssertionError("the last source takes what is left")

    def counts(self, n: int) -> dict[str, int]:
        """How many of the first ``n`` rows each source gives."""
        counts = {}
        for name, (whole, rest) in zip(self.sources, self._rests, strict=True):
            left = n * rest // whole
            counts[name], n = n - left, left
        return counts
