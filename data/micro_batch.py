"""Rows to the arrays of one forward pass: padded inputs, shifted labels, positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

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


def micro_batches(
    rows: Sequence[Row], parts: Sequence[range], pad_id: int, longest: int, *, restart_positions: bool = False
) -> list[MicroBatch]:
    """Rows of up to ``longest`` + 1 tokens as micro-batches; ``parts`` are the slots of each."""
    if len({len(row.ids) for row in rows}) == 1:  # packed: all of them at once, and views of that
        whole = _laid_out(rows, pad_id, longest, restart_positions)
        laid_out = [whole.of(part) for part in _slices(parts)]
    else:
        laid_out = [_laid_out(rows[part], pad_id, longest, restart_positions) for part in _slices(parts)]
    return [
        MicroBatch(inputs, labels, slots.start, int(np.count_nonzero(labels != IGNORED)), positions)
        for slots, (inputs, labels, positions) in zip(parts, laid_out, strict=True)
    ]


class _Arrays(NamedTuple):
    """Of a `MicroBatch`."""

    input_ids: Array
    labels: Array
    position_ids: Array | None

    def of(self, part: slice) -> _Arrays:
        """Some of the rows."""
        positions = None if self.position_ids is None else self.position_ids[part]
        return _Arrays(self.input_ids[part], self.labels[part], positions)


def _slices(parts: Sequence[range]) -> Iterator[slice]:
    """Where the rows of each part lie, one part's after the other's."""
    ends = accumulate(map(len, parts))
    return (slice(end - len(part), end) for part, end in zip(parts, ends, strict=True))


def _laid_out(rows: Sequence[Row], pad_id: int, longest: int, restart_positions: bool) -> _Arrays:
    sizes = [len(row.ids) for row in rows]
    width = min(-(-(max(sizes) - 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, longest)
    tokens = _tokens(rows, sizes, width + 1, pad_id)
    inputs, labels = tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)
    line, column = _firsts(rows, sizes, width + 1)
    labels[line[column > 0], column[column > 0] - 1] = IGNORED
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        if row.mask is not None:
            labels[index, : size - 1][~row.mask[1:]] = IGNORED
        if size <= width:
            inputs[index, size - 1 :] = pad_id
            labels[index, size - 1 :] = IGNORED
    return _Arrays(inputs, labels, _positions(line, column, inputs.shape) if restart_positions else None)


def _tokens(rows: Sequence[Row], sizes: Sequence[int], width: int, pad_id: int) -> npt.NDArray[np.int32]:
    """The rows' tokens, padded at the right: int32 [rows, width]."""
    if min(sizes) == width:
        return np.concatenate([row.ids for row in rows]).reshape(len(rows), width)
    tokens = np.full((len(rows), width), pad_id, np.int32)
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        tokens[index, :size] = row.ids
    return tokens


def _firsts(rows: Sequence[Row], sizes: Sequence[int], width: int) -> tuple[Array, Array]:
    """In which rows and columns documents begin, the padding being one."""
    lens: list[npt.ArrayLike] = []
    for row, size in zip(rows, sizes, strict=True):
        lens.append(row.doc_lens)
        if size < width:
            lens.append([width - size])
    ends = np.cumsum(np.concatenate(lens), dtype=np.int64)
    line, column = np.divmod(np.concatenate([[0], ends[:-1]]), width)
    return line, column


def _positions(line: Array, column: Array, shape: tuple[int, ...]) -> Array:
    """0, 1, 2… from each first token on: int64 of that shape."""
    begins = np.zeros((shape[0], shape[1] + 1), np.int64)
    begins[line, column] = column
    return np.arange(shape[1]) - np.maximum.accumulate(begins[:, :-1], axis=1)
