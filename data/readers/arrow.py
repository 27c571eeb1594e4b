"""Arrow IPC: files and streams, told apart by their first bytes. One record batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from data.files import SourceFile
from data.readers.blocks import Blocks, blocks_between, blocks_of
from data.readers.faults import changed, naming
from data.readers.selection import Record, Selection
from data.readers.tables import rows_of

MAGIC = b"ARROW1"


def columns(path: Path, place: str | None = None) -> list[str]:
    """The names of the schema's columns."""
    with naming(place or str(path), "is no Arrow file"), pa.OSFile(str(path)) as source:
        return list(_reader(source).schema.names)


def count(path: Path) -> tuple[int, Blocks]:
    """Rows and record batches. Of each batch only one column is decoded."""
    batches = _batches(path, str(path), columns(path)[:1])
    return blocks_of([batch.num_rows for _, batch in batches])


def records(
    path: Path, file: SourceFile, selection: Selection, place: str, start: int, stop: int
) -> Iterator[tuple[int, Record]]:
    """(row, the selected columns) of the rows [start, stop)."""
    selection.check(place, columns(path, place))
    names, blocks = selection.names, list(blocks_between(file, start, stop))
    batches = _batches(path, place, names, blocks[0][0])
    for number, first, end in blocks:
        batch = next((batch for index, batch in batches if index == number), None)
        if batch is None or batch.num_rows != end - first:
            found = (
                f"{batch.num_rows} rows in record batch {number}" if batch else f"no record batch {number}"
            )
            raise changed(place, file, found)
        yield from rows_of(pa.table(batch), names, first, start, stop, place)
    if stop == file.rows and any(batch.num_rows for _, batch in batches):
        raise changed(place, file, "more rows")


def _batches(
    path: Path, place: str, names: Sequence[str], first: int = 0
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number, batch) from batch ``first`` on, of some columns. A stream is passed through from its start."""
    existing = columns(path, place)
    options = pa.ipc.IpcReadOptions(
        included_fields=[existing.index(name) for name in names], use_threads=False
    )
    with naming(place), pa.OSFile(str(path)) as source:
        reader = _reader(source, options)
        if isinstance(reader, pa.RecordBatchFileReader):
            found = ((number, reader.get_batch(number)) for number in range(first, reader.num_record_batches))
        else:
            found = ((number, batch) for number, batch in enumerate(reader) if number >= first)
        for number, batch in found:
            # Offsets that point elsewhere would be read without a question.
            batch.validate(full=True)
            yield number, batch


def _reader(
    source: pa.NativeFile, options: pa.ipc.IpcReadOptions | None = None
) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    is_file = source.read(len(MAGIC)) == MAGIC
    source.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source, options=options)
