"""Rows to the arrays of one forward pass: padded inputs, shifted labels, positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.rows.pack import Row

IGNORED = -100
"""A label that is not learned: cross entropy's ``ignore_index``."""

LENGTH_MULTIPLE = 8
"""Micro-batches of shorter rows are padded to a multiple of this many tokens, which tensor cores like."""

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass.

    ``input_ids`` and ``labels`` are int64 [b, S]; ``labels[i, t]`` is the target of position t, already
    shifted, -100 where nothing is to be learned: padding, what a chat's mask leaves out, and the first token
    of a document, which nothing before it foretells. ``first_slot`` is the number, in the whole run, of its
    first sequence. ``targets`` counts the labels to be learned. ``position_ids`` int64 [b, S] count from 0
    in each document; None where attention is not restricted to it.
    """

    input_ids: Array
    labels: Array
    first_slot: int
    targets: int
    position_ids: Array | None = None


def micro_batch(
    rows: Sequence[Row], first_slot: int, pad_id: int, longest: int, *, restart_positions: bool = False
) -> MicroBatch:
    """Rows of up to ``longest`` + 1 tokens as one micro-batch."""
    width = max(len(row.ids) for row in rows) - 1
    width = min(-(-width // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, longest)
    input_ids = np.full((len(rows), width), pad_id, np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    positions = np.empty((len(rows), width), np.int64) if restart_positions else None
    for index, row in enumerate(rows):
        size = len(row.ids) - 1
        input_ids[index, :size] = row.ids[:-1]
        labels[index, :size] = row.ids[1:]
        if row.mask is not None:
            labels[index, :size][~row.mask[1:]] = IGNORED
        starts = np.cumsum(row.doc_lens)[:-1]
        labels[index, starts - 1] = IGNORED
        if positions is not None:
            positions[index] = _positions(starts, width)
    return MicroBatch(input_ids, labels, first_slot, int((labels != IGNORED).sum()), positions)


def _positions(starts: npt.NDArray[np.integer], width: int) -> Array:
    """0, 1, 2… from each start on; padding goes on counting."""
    origin = np.zeros(width, np.int64)
    inside = starts[starts < width]
    origin[inside] = inside
    return np.arange(width, dtype=np.int64) - np.maximum.accumulate(origin)
