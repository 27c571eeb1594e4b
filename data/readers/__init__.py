"""One reader per kind of file. Each begins at any row, yields documents, and names what is broken.

A reader turns rows into records (column -> value); `data.readers.record` turns records into documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from configs.schema import Filters
from data.document import Document
from data.files import Kind, Reading, SourceFile
from data.readers import arrow, jsonl, parquet, whole
from data.readers.blocks import Blocks
from data.readers.faults import where_of
from data.readers.filters import DocumentFilter
from data.readers.record import maker
from data.readers.selection import MESSAGES, Record, Selection, missing_column
from data.readers.streams import COMPRESSIONS

__all__ = [
    "ENDINGS",
    "MESSAGES",
    "columns",
    "count",
    "count_parquet",
    "kind_of",
    "missing_column",
    "place_of",
    "read",
]

ENDINGS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
    ".py": "text",
}
PACKABLE: tuple[Kind, ...] = ("jsonl", "text")

count_parquet = parquet.count


def kind_of(name: str | Path) -> Kind | None:
    """The reader that a file's ending asks for; ``my.jsonl.gz`` is JSONL."""
    stem, ending = os.path.splitext(str(name).lower())
    if ending not in COMPRESSIONS:
        return ENDINGS.get(ending)
    kind = ENDINGS.get(os.path.splitext(stem)[1])
    return kind if kind in PACKABLE else None


def columns(path: Path, kind: Kind) -> list[str]:
    """The columns of a file: its schema's, or the keys of a JSONL file's first record; none of a text's."""
    if kind == "jsonl":
        return jsonl.columns(path)
    if kind == "parquet":
        return parquet.columns(path)
    return arrow.columns(path) if kind == "arrow" else []


def count(path: Path, kind: Kind) -> tuple[int, Blocks]:
    """A file's rows, blank ones too, and the places where reading can begin (`SourceFile.blocks`).

    Raises:
        BadFile: it cannot be read, or is none of its kind.
    """
    if kind == "jsonl":
        return jsonl.count(path)
    if kind == "parquet":
        return parquet.count(path)
    return arrow.count(path) if kind == "arrow" else (1, ((0, 0),))


def place_of(file: SourceFile) -> str:
    """What errors call a file."""
    return file.name if file.kind == "python" else file.location


def read(
    path: Path,
    file: SourceFile,
    reading: Reading,
    filters: Filters,
    first: int,
    start: int = 0,
    stop: int | None = None,
    where: str | None = None,
) -> Iterator[Document]:
    """The documents of the rows [start, stop) of a file that are not blank and that the filters keep.

    Args:
        path: a local file of that content.
        file: its name tells how it is packed, its blocks where reading can begin.
        first: the number of the file's first row in its source.
        where: what errors call the file; None: where it lies.

    Raises:
        BadFile: it cannot be read, is cut off or damaged.
        ChangedFile: it holds more or fewer rows than were counted.
        UmbelError: a broken line (``file:line: what``), a missing column, a text that is no text.
    """
    place, stop = where or place_of(file), file.rows if stop is None else min(stop, file.rows)
    if start >= stop:
        return
    if file.kind in ("text", "python") and reading.format == "text":
        reading = replace(reading, field=whole.COLUMN)
    selection, make, kept = Selection.of(reading, filters), maker(reading), DocumentFilter(filters)
    for row, record in _records(path, file, reading, selection, place, start, stop):
        at = where_of(file.kind, place, row)
        selection.check(at, record)
        document = make(record, at, first + row)
        if document is not None and kept.keeps(document.text, record):
            yield document


def _records(
    path: Path, file: SourceFile, reading: Reading, selection: Selection, place: str, start: int, stop: int
) -> Iterator[tuple[int, Record]]:
    """(row, record) of every row in [start, stop) that has one."""
    if file.kind == "jsonl":
        return jsonl.records(path, file, place, start, stop)
    if file.kind == "parquet":
        return parquet.records(path, file, selection, place, start, stop)
    if file.kind == "arrow":
        return arrow.records(path, file, selection, place, start, stop)
    return iter([(0, {whole.COLUMN: whole.text_of(path, file, reading, place)})])
