"""Parquet: one row group in memory at a time, page checksums verified where the file has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

from data.files import SourceFile
from data.readers.blocks import Blocks, blocks_between, blocks_of
from data.readers.faults import changed, naming
from data.readers.selection import Record, Selection
from data.readers.tables import rows_of

Readable = Path | BinaryIO


def columns(source: Readable, place: str | None = None) -> list[str]:
    """The names of the columns; like `count`, reads only the footer."""
    with _opened(source, place or str(source)) as parquet:
        return list(parquet.schema_arrow.names)


def count(source: Readable, place: str | None = None) -> tuple[int, Blocks]:
    """Rows, and row groups, from the footer of a file or of an open (remote) file object.

    Raises:
        BadFile: no Parquet file; ``place`` is what the error names.
    """
    with _opened(source, place or str(source)) as parquet:
        groups = range(parquet.num_row_groups)
        return blocks_of([parquet.metadata.row_group(group).num_rows for group in groups])


def records(
    path: Path, file: SourceFile, selection: Selection, place: str, start: int, stop: int
) -> Iterator[tuple[int, Record]]:
    """(row, the selected columns) of the rows [start, stop)."""
    with _opened(path, place) as parquet:
        selection.check(place, list(parquet.schema_arrow.names))
        if parquet.metadata.num_rows != file.rows:
            raise changed(place, file, f"{parquet.metadata.num_rows} rows")
        names = selection.names
        for group, first, end in blocks_between(file, start, stop):
            # Not Fragment.to_batches, which can hang (apache/arrow#45214).
            with naming(place):
                table = parquet.read_row_group(group, columns=names, use_threads=False)
            if table.num_rows != end - first:
                raise changed(place, file, f"{table.num_rows} rows in row group {group}")
            yield from rows_of(table, names, first, start, stop, place)


@contextmanager
def _opened(source: Readable, place: str) -> Iterator[pq.ParquetFile]:
    with naming(place, "is no Parquet file"):
        parquet = pq.ParquetFile(source, page_checksum_verification=True)
    with parquet:
        yield parquet
