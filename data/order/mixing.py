"""Which source gives the n-th row of a mixture, in closed form: any n costs the same, nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESOLUTION = 1 << 40
"""Weights are rounded to this part of their sum."""

Numbers = npt.NDArray[np.int64]


class Picks(NamedTuple):
    """Some rows: the indices of their sources, and each one's ordinal among the rows the run takes from its
    source. Both int64 [rows]."""

    sources: Numbers
    ordinals: Numbers


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

    def picks(self, n: Numbers) -> Picks:
        """The sources of the rows ``n``, as indices of `sources`, and how many rows each gave before."""
        sources, ordinals = np.empty_like(n), np.empty_like(n)
        open_ = np.arange(len(n))  # those whose source is not found yet
        for index, (whole, rest) in enumerate(self._rests):
            left = _share(n, rest, whole)
            mine = left == _share(n + 1, rest, whole)
            sources[open_[mine]] = index
            ordinals[open_[mine]] = (n - left)[mine]
            n, open_ = left[~mine], open_[~mine]
        return Picks(sources, ordinals)

    def counts(self, n: int) -> dict[str, int]:
        """How many of the first ``n`` rows each source gives."""
        counts = {}
        for name, (whole, rest) in zip(self.sources, self._rests, strict=True):
            left = n * rest // whole
            counts[name], n = n - left, left
        return counts


def _share(n: Numbers, part: int, whole: int) -> Numbers:
    """``n * part // whole``, where the product would not fit into 64 bits; part <= whole < 2^41."""
    times, n = np.divmod(n, whole)
    high, low = part >> 20, part & ((1 << 20) - 1)
    found, over = np.divmod(n * high, whole)
    share: Numbers = times * part + (found << 20) + ((over << 20) + n * low) // whole
    return share
