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
    sizes = [len(row.ids) for row in rows]
    width = min(-(-(max(sizes) - 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, longest)
    tokens, first = _tokens(rows, sizes, width + 1, pad_id), _first(rows, sizes, width + 1)
    inputs, labels = tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)
    labels[first[:, 1:]] = IGNORED
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        if row.mask is not None:
            labels[index, : size - 1][~row.mask[1:]] = IGNORED
        if size <= width:
            inputs[index, size - 1 :] = pad_id
            labels[index, size - 1 :] = IGNORED
    positions = _positions(first[:, :-1]) if restart_positions else None
    return MicroBatch(inputs, labels, first_slot, int(np.count_nonzero(labels != IGNORED)), positions)


def _tokens(rows: Sequence[Row], sizes: Sequence[int], width: int, pad_id: int) -> npt.NDArray[np.int32]:
    """The rows' tokens, padded at the right: int32 [rows, width]."""
    if min(sizes) == width:
        return np.stack([row.ids for row in rows])
    tokens = np.full((len(rows), width), pad_id, np.int32)
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        tokens[index, :size] = row.ids
    return tokens


def _first(rows: Sequence[Row], sizes: Sequence[int], width: int) -> npt.NDArray[np.bool_]:
    """Which tokens a document begins with, the padding being one: bool [rows, width]."""
    lens: list[npt.ArrayLike] = []
    for row, size in zip(rows, sizes, strict=True):
        lens.append(row.doc_lens)
        if size < width:
            lens.append([width - size])
    ends = np.cumsum(np.concatenate(lens))
    first = np.zeros(len(rows) * width, bool)
    first[0] = True
    first[ends[:-1]] = True
    return first.reshape(len(rows), width)


def _positions(first: npt.NDArray[np.bool_]) -> Array:
    """0, 1, 2… from each first token on: int64 of the same shape."""
    places = np.arange(first.shape[1], dtype=np.int64)
    return places - np.maximum.accumulate(np.where(first, places, 0), axis=1)
