"""What is left of documents, and rows cut from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.rows.pack import Row
from data.tokens.encode import Example


class Piece(NamedTuple):
    """What is left of a document: its counter in the lane, and its tokens from ``offset`` on."""

    counter: int
    offset: int
    example: Example


def rest(piece: Piece, drop: int) -> Piece:
    """A piece without its first ``drop`` tokens."""
    ids, mask, document = piece.example.ids, piece.example.mask, piece.example.document
    left = Example(ids[drop:], None if mask is None else mask[drop:], document)
    return Piece(piece.counter, piece.offset + drop, left)


def row_of(examples: Sequence[Example], length: int) -> Row:
    """The first ``length`` tokens of some documents end to end, fewer where they have no more."""
    parts, left = [], length
    for example in examples:
        if left == 0:
            break
        mask = None if example.mask is None else example.mask[:left]
        parts.append(Example(example.ids[:left], mask, example.document))
        left -= len(parts[-1].ids)
    masks = [part.mask for part in parts if part.mask is not None]
    return Row(
        np.concatenate([part.ids for part in parts]),
        np.concatenate(masks) if masks else None,
        np.array([len(part.ids) for part in parts], np.int32),
        np.array([part.document for part in parts], np.int64),
    )
