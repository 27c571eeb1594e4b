"""What is left of documents, and rows cut from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from data.rows.pack import Row, cut, together
from data.tokens.encode import Example


class Piece(NamedTuple):
    """What is left of a document: its counter in the lane, and its tokens from ``offset`` on."""

    counter: int
    offset: int
    example: Example


def rest(piece: Piece, drop: int) -> Piece:
    """A piece without its first ``drop`` tokens."""
    return Piece(piece.counter, piece.offset + drop, cut(piece.example, drop))


def row_of(examples: Sequence[Example], length: int) -> Row:
    """The first ``length`` tokens of some documents end to end, fewer where they have no more."""
    parts, left = [], length
    for example in examples:
        if left == 0:
            break
        parts.append(cut(example, 0, left))
        left -= len(parts[-1].ids)
    return together(parts)
