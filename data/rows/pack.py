"""Documents to rows: end to end and cut, whole ones as they fit, or one to a row.

A row has at most ``length + 1`` tokens; with inputs ``row[:-1]`` and targets ``row[1:]`` the first token of a
document is never a target. Where a document goes on in another row, that row begins with the token that
ended the one before, so that each of its other tokens is a target exactly once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.tokens.encode import Example, Ids, Mask

Numbers = npt.NDArray[np.int64]


class Row(NamedTuple):
    """``ids`` and ``mask`` of equal length; ``doc_lens`` are the lengths of the documents' parts in it, and
    ``doc_ids`` those documents' numbers in their source."""

    ids: Ids
    mask: Mask | None
    doc_lens: Ids
    doc_ids: Numbers

    @property
    def has_targets(self) -> bool:
        """Whether there is anything to learn."""
        if self.mask is None:
            return len(self.ids) > len(self.doc_lens)
        return bool(learned(len(self.ids), self.doc_lens, self.mask).any())


def learned(length: int, doc_lens: Ids, mask: Mask | None) -> Mask:
    """Which of a row's ``length`` tokens are targets: all of ``mask`` but the first of each document."""
    targets = np.ones(length, bool) if mask is None else mask.copy()
    targets[:1] = False
    targets[np.cumsum(doc_lens)[:-1]] = False
    return targets


def pack(carry: Row | None, examples: Sequence[Example], length: int) -> tuple[list[Row], Row | None]:
    """Append examples to the carry of the call before, and cut rows of ``length + 1`` tokens.

    Returns the rows and the new carry: the last row's last token, and what did not fill a row.
    """
    stream = _join(carry, examples)
    if stream is None:
        return [], None
    count = max(0, (len(stream.ids) - 1) // length)
    ends = np.cumsum(stream.doc_lens, dtype=np.int64)
    rows = [_slice(stream, ends, index * length, index * length + length + 1) for index in range(count)]
    return rows, _slice(stream, ends, count * length, len(stream.ids))


def best_fit(examples: Iterable[Example], length: int) -> list[Row]:
    """Whole documents together in rows of at most ``length + 1`` tokens, the longest first, each into the
    fullest row that still has room for it (Ding et al. 2024, arXiv:2404.10830).

    Of a text longer than a row as many whole rows are cut as it fills; of a chat, what does not fit is lost.
    The rows come in the order of their first documents. Equal examples, equal rows.
    """
    pieces = [piece for example in examples for piece in _pieces(example, length)]
    longest_first = sorted(range(len(pieces)), key=lambda index: (-len(pieces[index].ids), index))
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    rows: list[list[int]] = []
    for index in longest_first:
        size = len(pieces[index].ids)
        place = bisect_left(open_rows, (size, -1))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
        else:
            room, row = length + 1, len(rows)
            rows.append([])
        rows[row].append(index)
        if room > size:
            insort(open_rows, (room - size, row))
    return [together([pieces[index] for index in sorted(row)]) for row in sorted(map(sorted, rows))]


def one_per_row(examples: Iterable[Example], length: int) -> list[Row]:
    """One document per row, cut after ``length + 1`` tokens; rows are not padded (batches are)."""
    return [together([cut(example, 0, length + 1)]) for example in examples]


def _pieces(example: Example, length: int) -> list[Example]:
    """A document that fits as it is; a longer one in rows that overlap by a token, or cut if it is a chat."""
    if example.mask is not None:
        return [cut(example, 0, length + 1)]
    starts = range(0, max(1, len(example.ids) - 1), length)
    return [cut(example, start, start + length + 1) for start in starts]


def cut(example: Example, start: int, stop: int | None = None) -> Example:
    """The tokens [start, stop) of a document."""
    mask = None if example.mask is None else example.mask[start:stop]
    return Example(example.ids[start:stop], mask, example.document)


def together(examples: Sequence[Example]) -> Row:
    """Documents, or parts of them, end to end as one row."""
    masks = [example.mask for example in examples if example.mask is not None]
    return Row(
        np.concatenate([example.ids for example in examples]),
        np.concatenate(masks) if masks else None,
        np.array([len(example.ids) for example in examples], np.int32),
        np.array([example.document for example in examples], np.int64),
    )


def _join(carry: Row | None, examples: Sequence[Example]) -> Row | None:
    if not examples:
        return carry
    new = together(examples)
    if carry is None:
        return new
    mask = None if carry.mask is None or new.mask is None else np.concatenate([carry.mask, new.mask])
    return Row(
        np.concatenate([carry.ids, new.ids]),
        mask,
        np.concatenate([carry.doc_lens, new.doc_lens]),
        np.concatenate([carry.doc_ids, new.doc_ids]),
    )


def _slice(stream: Row, ends: Numbers, start: int, stop: int) -> Row:
    first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
    doc_lens = np.diff(np.concatenate([[start], ends[first:last], [stop]])).astype(np.int32)
    mask = None if stream.mask is None else stream.mask[start:stop]
    return Row(stream.ids[start:stop], mask, doc_lens, stream.doc_ids[first : last + 1])
