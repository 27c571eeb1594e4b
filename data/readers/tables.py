"""Rows of Arrow tables, as Parquet and Arrow files hand them out."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from base.errors import UmbelError
from data.readers.selection import Record

SLICE = 1000
"""Rows that are Python objects at a time."""


def rows_of(
    table: pa.Table, names: list[str], first: int, start: int, stop: int, place: str
) -> Iterator[tuple[int, Record]]:
    """(row, record) of a file's rows [start, stop), of which the table holds those from ``first`` on."""
    selected = table.select(names)
    for row in range(max(start, first), min(stop, first + table.num_rows), SLICE):
        part = selected.slice(row - first, min(SLICE, stop - row))
        try:
            values = [column.to_pylist() for column in part.columns]
        except UnicodeDecodeError as error:
            where = f"{place} rows {row + 1} to {row + part.num_rows}"
            raise UmbelError("is not UTF-8 text", where=where, fix="write its columns as UTF-8") from error
        for number, cells in enumerate(zip(*values, strict=True), row):
            yield number, dict(zip(names, cells, strict=True))
