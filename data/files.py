"""The files of a source: where they lie, what they are known by, how many rows they hold."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

Kind = Literal["python", "text", "jsonl", "parquet", "arrow"]
Format = Literal["text", "messages"]
Blocks = tuple[tuple[int, int], ...]
"""Where reading can begin: (first row, where)."""

SOURCE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
"""It names a folder of the cache, and configs and manifests may come from another institution."""


@dataclass(frozen=True)
class FoundFile:
    """A file that a listing showed, before it is counted.

    ``stamp`` tells one state of a file from the next (a local file's times, a server's ETag or date; empty
    where there is none to be had). ``pin`` is its hash and ``etag`` its strong ETag, where the server tells.
    """

    name: str
    location: str
    kind: Kind
    size: int
    stamp: str = ""
    pin: str | None = None
    etag: str | None = None


@dataclass(frozen=True)
class SourceFile:
    """One file.

    ``name`` is the same on every machine; ``location`` is this machine's path, or a URL. ``pin`` is what its
    content is known by: ``sha256:…``, ``md5:…``, ``git:…`` (a blob's sha1) or ``etag:…``. ``blocks`` are the
    places where reading can begin: (first row, where), with the byte offset of that line in a JSONL file and
    the number of the row group or record batch in a Parquet or Arrow file.
    """

    name: str
    location: str
    kind: Kind
    size: int
    pin: str
    rows: int
    blocks: Blocks = ((0, 0),)

    @property
    def is_remote(self) -> bool:
        return "://" in self.location

    @property
    def entry(self) -> dict[str, Any]:
        """What a manifest remembers: everything but the location."""
        return {
            "name": self.name,
            "kind": self.kind,
            "size": self.size,
            "pin": self.pin,
            "rows": self.rows,
            "blocks": [list(block) for block in self.blocks],
        }

    @staticmethod
    def of(entry: dict[str, Any], location: str) -> SourceFile:
        blocks = tuple((first, place) for first, place in entry["blocks"])
        return SourceFile(
            entry["name"], location, entry["kind"], entry["size"], entry["pin"], entry["rows"], blocks
        )


@dataclass(frozen=True)
class Reading:
    """How a row of a file becomes a document: what of a source's config the readers need.

    Exactly one of ``field`` and ``template`` counts, the template where it is given; ``format`` messages
    reads the column ``messages``.
    """

    format: Format
    field: str = "text"
    template: str | None = None
    part: str | None = None  # kind=python: code, tests or prose
    columns: tuple[str, ...] = ()  # more columns, that filters ask for


@dataclass(frozen=True)
class OpenSource:
    """A source whose files are known and counted. Documents are numbered over its files in order.

    ``skipped`` names the files that cannot be read and that the config says to leave out; ``revision`` is
    the commit of a hub dataset.
    """

    name: str
    key: str  # where the config names it, for errors
    reading: Reading
    files: tuple[SourceFile, ...]
    skipped: tuple[str, ...] = ()
    revision: str | None = None

    @property
    def rows(self) -> int:
        return self._ends[-1] if self._ends else 0

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(file.rows for file in self.files))

    def locate(self, number: int) -> tuple[int, int]:
        """The index of the file that holds document ``number``, and its row in that file."""
        if not 0 <= number < self.rows:
            raise IndexError(number)
        index = bisect_right(self._ends, number)
        return index, number - self.first_number(index)

    def first_number(self, index: int) -> int:
        """The number of the first document of the file of that index."""
        return self._ends[index - 1] if index else 0
