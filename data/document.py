"""What a source hands out: documents, and the files they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from base.errors import UmbelError
from base.files import sha256_file

Message = dict[str, Any]
"""``{"role": …, "content": …}``, and whatever else the chat template reads."""


@dataclass(frozen=True)
class Document:
    """One text, or one chat.

    ``where`` is told in errors: a file, or file:line. For a chat ``text`` is its canonical JSON.
    """

    where: str
    text: str
    messages: list[Message] | None = None


@dataclass(frozen=True)
class PinnedFile:
    """A file that defines a source, under a name that means the same on every machine."""

    name: str
    path: Path

    @cached_property
    def pin(self) -> dict[str, Any]:
        """Name, size in bytes and sha256: what a manifest remembers."""
        try:
            return {"name": self.name, "size": self.path.stat().st_size, "sha256": sha256_file(self.path)}
        except OSError as error:
            raise UmbelError(f"cannot be read ({error.strerror})", where=str(self.path)) from error


@dataclass(frozen=True)
class OpenSource:
    """A source whose files exist and whose format is known. ``documents`` may be called many times."""

    name: str
    format: Literal["text", "messages"]
    files: list[PinnedFile]
    read: Callable[[], Iterator[Document]]
    max_bytes: int | None = None

    def documents(self) -> Iterator[Document]:
        return self.read() if self.max_bytes is None else take_bytes(self.read(), self.max_bytes)


def take_bytes(documents: Iterable[Document], max_bytes: int) -> Iterator[Document]:
    """The first ``max_bytes`` bytes of text: the last text is cut there, a chat that does not fit is left."""
    left = max_bytes
    for document in documents:
        encoded = document.text.encode()
        if len(encoded) > left:
            cut = encoded[:left].decode(errors="ignore")
            if cut and document.messages is None:
                yield Document(document.where, cut)
            return
        yield document
        left -= len(encoded)


def is_held_out(document: Document, share: float) -> bool:
    """Whether a document is kept for evaluation: a function of its text alone, so equal texts, even
    in different sources, fall on the same side of the split."""
    digest = hashlib.sha256(document.text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
