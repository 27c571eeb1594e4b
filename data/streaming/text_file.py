"""Texts by number in an Arrow IPC file, read through a memory map: about a microsecond each.

A column ``text``, large_string, with null for a number that has none, and its checksum ``crc32``. Batches
are small, so that a file of any size is written in little memory. A text is never empty: what has no length
is null.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from base.errors import UmbelError

SCHEMA = pa.schema({"text": pa.large_string(), "crc32": pa.uint32()})
BATCH_ROWS = 1000
BATCH_CHARACTERS = 4 << 20


def write_texts(out: BinaryIO, texts: Iterable[str | None]) -> None:
    """Write texts in order, never more than a batch in memory."""
    with pa.ipc.new_file(out, SCHEMA) as writer:
        for batch in _batches(texts):
            sums = [zlib.crc32((text or "").encode()) for text in batch]
            columns = [pa.array(batch, pa.large_string()), pa.array(sums, pa.uint32())]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))


def _batches(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    batch: list[str | None] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text or "")
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class TextFile:
    """An open file of texts. The map stays valid when the file is deleted.

    Raises:
        OSError: it cannot be opened.
        pa.ArrowInvalid: it is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        # The file handle is closed here: the buffers keep the map alive.
        self._ends = list(accumulate(batch.num_rows for batch in batches))
        self._views = [_views(batch) for batch in batches]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def get(self, row: int) -> str | None:
        """The text of a row; None where it has none.

        Raises:
            UmbelError: its bytes are not those that were written.
        """
        index = bisect_right(self._ends, row)
        offsets, content, sums = self._views[index]
        inner = row - (self._ends[index - 1] if index else 0)
        found = content[offsets[inner] : offsets[inner + 1]]
        if zlib.crc32(found) != sums[inner]:
            fix = "delete it: it is made again"
            raise UmbelError(f"is damaged (row {row})", where=str(self.path), fix=fix)
        return str(found, "utf-8") if found else None


def _views(batch: pa.RecordBatch) -> tuple[memoryview, memoryview, memoryview]:
    """The texts' int64 offsets, their bytes, and their checksums, without a copy."""
    _, offsets, content = batch["text"].buffers()
    _, sums = batch["crc32"].buffers()
    return memoryview(offsets).cast("q"), memoryview(content or b""), memoryview(sums).cast("I")
