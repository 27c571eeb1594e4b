"""Rows on disk: Parquet files, and beside each an Arrow copy of it, made for reading any row at once.

Columns: ``input_ids`` list<int32>, ``doc_lens`` list<int32>, ``doc_ids`` list<int64>, and for chats
``labels_mask`` list<bool>. The Parquet file is what is kept, checked and copied between machines: every page
carries a checksum. The Arrow file is memory-mapped, so that a full shuffle costs nothing. It adds a checksum
of each row, ``crc32``, and the shard's sha256; where it is missing, cut short or of other rows it is made
again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from base.errors import UmbelError
from base.files import atomic_file
from data.rows.pack import Numbers, Row

COLUMNS = ("input_ids", "doc_lens", "doc_ids", "labels_mask")
CRC32, SHA256 = "crc32", b"sha256"
ROWS_PER_GROUP = 1000
MAPPED = 4096
"""Arrow files held open at once: the kernel allows a process some 65,000 maps."""


def write_shard(path: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Write rows as the Parquet file ``path`` and its Arrow copy. Returns the shard's entry in the manifest;
    ``sha256`` is that of the rows' contents, whatever version of a library wrote them."""
    batch = _batch(rows)
    with atomic_file(path) as file:
        pq.write_table(
            pa.Table.from_batches([batch]),
            file,
            row_group_size=ROWS_PER_GROUP,
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
    sha256 = _sha256(batch)
    _write_copy(path, batch, sha256)
    return {"name": path.name, "rows": len(rows), "sha256": sha256}


def copy_of(path: Path) -> Path:
    """The Arrow copy of a shard."""
    return path.with_suffix(".arrow")


def write_copy(path: Path, sha256: str) -> None:
    """Make a shard's Arrow copy from its Parquet file.

    Raises:
        UmbelError: the Parquet file is damaged (a page's checksum), or its rows are not those of ``sha256``.
    """
    fix = "fetch or prepare it again"
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            batches = file.read().combine_chunks().to_batches()
    except (OSError, pa.ArrowException) as error:
        what = f"is damaged ({str(error).splitlines()[0]})"
        raise UmbelError(what, where=str(path), fix=fix) from error
    if len(batches) != 1 or _sha256(batches[0]) != sha256:
        raise UmbelError("does not hold the rows that the manifest names", where=str(path), fix=fix)
    _write_copy(path, batches[0], sha256)


def _write_copy(path: Path, batch: pa.RecordBatch, sha256: str) -> None:
    columns = _columns(batch)
    sums = [_crc32(_row(columns, number)) for number in range(batch.num_rows)]
    batch = batch.append_column(CRC32, pa.array(sums, pa.uint32()))
    batch = batch.replace_schema_metadata({SHA256: sha256})
    with atomic_file(copy_of(path)) as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)


def _batch(rows: Sequence[Row]) -> pa.RecordBatch:
    columns = {
        "input_ids": _list_array([row.ids for row in rows], pa.int32()),
        "doc_lens": _list_array([row.doc_lens for row in rows], pa.int32()),
        "doc_ids": _list_array([row.doc_ids for row in rows], pa.int64()),
    }
    masks = [row.mask for row in rows if row.mask is not None]
    if masks:
        columns["labels_mask"] = _list_array(masks, pa.bool_())
    return pa.record_batch(columns)


def _list_array(parts: Sequence[npt.NDArray[Any]], kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(parts), kind))


def _sha256(batch: pa.RecordBatch) -> str:
    digest = hashlib.sha256()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        lens = np.diff(column.offsets.to_numpy()).astype(np.int32)
        for part in (lens, column.values.to_numpy(zero_copy_only=False)):
            digest.update(f"{name} {part.dtype} {len(part)}\n".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Column:
    """A list column; its offsets as a memoryview, which gives an int ten times as fast as numpy does."""

    values: npt.NDArray[Any]
    offsets: memoryview

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


_Shard = tuple[dict[str, _Column], memoryview]
"""The columns of a copy, and the checksums of its rows."""


def _columns(batch: pa.RecordBatch) -> dict[str, _Column]:
    return {
        name: _Column(column.values.to_numpy(zero_copy_only=False), memoryview(column.offsets.to_numpy()))
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
        if name in COLUMNS
    }


def _row(columns: dict[str, _Column], row: int) -> Row:
    mask = columns["labels_mask"][row] if "labels_mask" in columns else None
    return Row(columns["input_ids"][row], mask, columns["doc_lens"][row], columns["doc_ids"][row])


def _crc32(row: Row) -> int:
    found = zlib.crc32(row.doc_ids.data, zlib.crc32(row.doc_lens.data, zlib.crc32(row.ids.data)))
    return found if row.mask is None else zlib.crc32(row.mask.data, found)


class RowTable:
    """The rows of one source and split, by number, over its shards. Reads nothing until asked.

    Args:
        folder: holds the shards.
        shards: their entries in the manifest.
    """

    def __init__(self, folder: Path, shards: Sequence[dict[str, Any]]) -> None:
        self._folder, self._entries = folder, shards
        self._ends = np.cumsum([shard["rows"] for shard in shards], dtype=np.int64)
        self._firsts = np.concatenate([[0], self._ends])
        self._open: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def row(self, row: int) -> Row:
        """All of a row; raises what `rows` does."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.rows(np.array([row]))[0]

    def rows(self, rows: Numbers) -> list[Row]:
        """Several rows, in any order.

        Raises:
            UmbelError: a row's bytes in the Arrow copy are not those that were written.
        """
        shards = np.searchsorted(self._ends, rows, "right")
        inner = rows - self._firsts[shards]
        return [self._read(*place) for place in zip(shards.tolist(), inner.tolist(), strict=True)]

    def _read(self, shard: int, inner: int) -> Row:
        columns, sums = self._open.get(shard) or self._shard(shard)
        found = _row(columns, inner)
        if _crc32(found) != sums[inner]:
            path = copy_of(self._folder / self._entries[shard]["name"])
            fix = "delete it: it is made again from the Parquet file beside it"
            raise UmbelError(f"is damaged (row {inner})", where=str(path), fix=fix)
        return found

    def target_counts(self, vocab_size: int, shards: int) -> npt.NDArray[np.int64]:
        """How often each id is a target (first in no document, not masked) in the first ``shards``, by id:
        int64 [vocab_size]."""
        counts = np.zeros(vocab_size, np.int64)
        for columns, _ in map(self._shard, range(min(shards, len(self._entries)))):
            tokens, mask = columns["input_ids"], columns.get("labels_mask")
            learned = np.ones(len(tokens.values), bool) if mask is None else mask.values.copy()
            ends = np.cumsum(columns["doc_lens"].values, dtype=np.int64)
            learned[:1] = False
            learned[ends[:-1]] = False  # rows begin with a document, too
            counts += np.bincount(tokens.values[learned], minlength=vocab_size)
        return counts

    def _shard(self, index: int) -> _Shard:
        if index not in self._open:
            if len(self._open) >= MAPPED:
                self._open.pop(next(iter(self._open)))
            self._open[index] = self._map(index)
        return self._open[index]

    def _map(self, index: int) -> _Shard:
        entry = self._entries[index]
        path = self._folder / entry["name"]
        try:
            batch = _read_copy(path, entry["sha256"])
        except (OSError, pa.ArrowInvalid, StopIteration, _OtherRows):
            write_copy(path, entry["sha256"])
            batch = _read_copy(path, entry["sha256"])
        return _columns(batch), memoryview(batch[CRC32].to_numpy())


class _OtherRows(Exception):
    """The copy of another shard of that name."""


def _read_copy(path: Path, sha256: str) -> pa.RecordBatch:
    batch = pa.ipc.open_stream(pa.memory_map(str(copy_of(path)))).read_next_batch()
    if (batch.schema.metadata or {}).get(SHA256) != sha256.encode():
        raise _OtherRows
    return batch
