"""Work cut into parts: ranges of rows of a source's files, in order.

Parts follow from the manifest's entries alone, so that whoever prepares the same source, on any machine and
with any number of workers, cuts it at the same places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from configs.schema import Filters
from data.document import Document
from data.files import OpenSource, Reading, SourceFile
from data.places.pins import check_local
from data.places.remote import fetch
from data.readers import read

PART_BYTES = 16 << 20
"""Of the files, as they lie on the disk."""

SHARD_TOKENS = 8 << 20
"""A part with more becomes several shards: a compressed file, which is one part, may be of any size."""


@dataclass(frozen=True)
class Span:
    """Rows ``start`` to ``stop`` of one file, whose first row is number ``first`` of its source."""

    file: SourceFile
    first: int
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether the file ends here."""
        return self.stop == self.file.rows


@dataclass(frozen=True)
class Part:
    """Consecutive spans; ``size`` is their share of the files, in bytes."""

    spans: tuple[Span, ...] = ()
    size: float = 0.0

    @property
    def first(self) -> int:
        """The number of its first row in the source."""
        return self.spans[0].first + self.spans[0].start

    @property
    def rows(self) -> int:
        return self.spans[-1].first + self.spans[-1].stop - self.first

    def joined(self, span: Span, size: float) -> Part:
        """With one more span; one that goes on where the last ended makes it longer."""
        last = self.spans[-1] if self.spans else None
        if last is None or last.file is not span.file:
            return Part((*self.spans, span), self.size + size)
        return Part((*self.spans[:-1], replace(last, stop=span.stop)), self.size + size)


def parts_of(source: OpenSource) -> list[Part]:
    """The parts of a source: cut where reading can begin, each of ``PART_BYTES`` or a little more (the last
    less). A file that can only be read from its beginning lies in one part."""
    parts, part = [], Part()
    for index, file in enumerate(source.files):
        bounds = [first for first, _ in file.blocks if first < file.rows] + [file.rows]
        for start, stop in pairwise(bounds):
            span = Span(file, source.first_number(index), start, stop)
            part = part.joined(span, file.size * (stop - start) / file.rows)
            if part.size >= PART_BYTES:
                parts.append(part)
                part = Part()
    return [*parts, part] if part.spans else parts


def documents_of(
    spans: Iterable[Span], reading: Reading, filters: Filters, folder: Path
) -> Iterator[Document]:
    """The documents of some spans, in order. Files that lie elsewhere are fetched into ``folder``.

    Raises:
        BadFile, ChangedFile: a file that cannot be had, is not what it was, or is written to meanwhile.
    """
    for span in spans:
        path = fetch(span.file, folder)
        yield from read(path, span.file, reading, filters, span.first, span.start, span.stop)
        check_still(span.file)


def check_still(file: SourceFile) -> None:
    """Find out whether a local file was written to while it was read. A fetched one is nobody else's."""
    if not file.is_remote:
        check_local(file)


def whole(source: OpenSource) -> Iterator[Span]:
    """All of a source, a file at a time."""
    for index, file in enumerate(source.files):
        yield Span(file, source.first_number(index), 0, file.rows)
