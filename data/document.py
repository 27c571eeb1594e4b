"""A document: what a source hands out, known by its number in the source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""``{"role": …, "content": …}``, and whatever else the chat template reads."""


@dataclass(frozen=True)
class Document:
    """One text, or one chat.

    ``where`` is told in errors: a file, or file:line. For a chat ``text`` is its canonical JSON. ``number``
    counts the rows of the source's files in order, from 0: blank lines, and rows that a filter leaves out,
    have a number too.
    """

    where: str
    text: str
    messages: list[Message] | None = None
    number: int = 0


def take_bytes(documents: Iterable[Document], max_bytes: int) -> Iterator[Document]:
    """The first ``max_bytes`` bytes of text: the last text is cut there, a chat that does not fit is left."""
    left = max_bytes
    for document in documents:
        encoded = document.text.encode()
        if len(encoded) > left:
            cut = encoded[:left].decode(errors="ignore")
            if cut and document.messages is None:
                yield Document(document.where, cut, None, document.number)
            return
        yield document
        left -= len(encoded)


def is_held_out(document: Document, share: float) -> bool:
    """Whether a document is kept for evaluation: a function of its text alone, so equal texts, even
    in different sources, fall on the same side of the split."""
    digest = hashlib.sha256(document.text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
