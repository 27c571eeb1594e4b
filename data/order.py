"""The global order: which row is the n-th sequence of the run. No rank or world size appears in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple
from zlib import crc32

from data.prepared import Prepared


class RowRef(NamedTuple):
    """A train row: the source's name and the row's number in it."""

    source: str
    row: int


class GlobalOrder:
    """Sequence n to row, as a pure function of (lengths, weights, seed), through grain's MapDataset.

    Each source is shuffled anew in each of its epochs and repeated without end; the sources are interleaved
    so that at every point each has had its share, give or take a row. Nothing is stored: any n costs the
    same.

    Args:
        weights: relative shares by source; those of weight 0 are not read.
    """

    def __init__(self, prepared: Prepared, weights: Mapping[str, float], seed: int) -> None:
        # Without jax, which nothing here needs, grain warns at import.
        logging.getLogger("absl").setLevel(logging.ERROR)
        from grain import MapDataset

        # Sorted, so that the order of keys in a YAML file is no part of the run.
        self.sources = sorted(name for name, weight in weights.items() if weight > 0)
        streams = [
            MapDataset.range(len(prepared.rows(name, "train")))
            .shuffle(seed=crc32(f"{seed} {name}".encode()))
            .map(lambda row, name=name: RowRef(name, row))
            .repeat()
            for name in self.sources
        ]
        self._mix = MapDataset.mix(streams, weights=[weights[name] for name in self.sources])

    def __getitem__(self, n: int) -> RowRef:
        ref: RowRef = self._mix[n]
        return ref
