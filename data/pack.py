"""Documents to rows: packed end to end and cut, or one to a row.

A packed row has ``sequence_length + 1`` tokens and shares its first with its neighbour's last, so that with
inputs ``row[:-1]`` and targets ``row[1:]`` every token of the stream but the first is a target exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data.encode import Example, Ids, Mask


@dataclass(frozen=True)
class Row:
    """``ids`` and ``mask`` of equal length; ``doc_lens`` are the lengths of the documents' parts in it."""

    ids: Ids
    mask: Mask | None
    doc_lens: Ids

    @property
    def has_targets(self) -> bool:
        """Whether there is anything to learn: the first token is no target."""
        return len(self.ids) > 1 and (self.mask is None or bool(self.mask[1:].any()))


def pack(carry: Row | None, examples: Sequence[Example], length: int) -> tuple[list[Row], Row | None]:
    """Append examples to the carry of the call before, and cut rows of ``length + 1`` tokens.

    Returns the rows and the new carry: the last row's last token, and what did not fill a row.
    """
    stream = _join(carry, examples)
    if stream is None:
        return [], None
    count = max(0, (len(stream.ids) - 1) // length)
    ends = np.cumsum(stream.doc_lens)
    rows = [_slice(stream, ends, index * length, index * length + length + 1) for index in range(count)]
    return rows, _slice(stream, ends, count * length, len(stream.ids))


def one_per_row(examples: Iterable[Example], length: int) -> tuple[list[Row], int, int, int]:
    """One document per row, cut after ``length + 1`` tokens; rows are not padded (batches are).

    Returns the rows, how many documents were cut, how many tokens that cost, and how many documents were
    left out because nothing in what remained could be learned.
    """
    rows, cut_documents, cut_tokens, left_out = [], 0, 0, 0
    for example in examples:
        ids, mask = example.ids[: length + 1], example.mask
        cut_documents += len(ids) < len(example.ids)
        cut_tokens += len(example.ids) - len(ids)
        mask = None if mask is None else mask[: length + 1]
        row = Row(ids, mask, np.array([len(ids)], np.int32))
        if row.has_targets:
            rows.append(row)
        else:
            left_out += 1
    return rows, cut_documents, cut_tokens, left_out


def _join(carry: Row | None, examples: Sequence[Example]) -> Row | None:
    parts = [Example(carry.ids, carry.mask), *examples] if carry else list(examples)
    if not parts:
        return None
    lens = [len(example.ids) for example in examples]
    masks = [part.mask for part in parts if part.mask is not None]
    return Row(
        np.concatenate([part.ids for part in parts]),
        np.concatenate(masks) if masks else None,
        np.array([*(carry.doc_lens if carry else ()), *lens], np.int32),
    )


def _slice(stream: Row, ends: Ids, start: int, stop: int) -> Row:
    first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
    inner = ends[first:last]
    doc_lens = np.diff(np.concatenate([[start], inner, [stop]])).astype(np.int32)
    mask = None if stream.mask is None else stream.mask[start:stop]
    return Row(stream.ids[start:stop], mask, doc_lens)
