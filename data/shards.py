"""Rows on disk: Arrow IPC files that `datasets.Dataset.from_file` opens too, read through a memory map.

Columns: ``input_ids`` list<int32>, ``doc_lens`` list<int32>, and for chats ``labels_mask`` list<bool>.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from base.errors import UmbelError
from base.files import atomic_file
from data.encode import Ids, Mask
from data.pack import Row


def write_shard(path: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Write rows as one record batch. Returns the shard's entry in the manifest; ``sha256`` is that of the
    rows' tokens, masks and lengths, whatever version of Arrow wrote them."""
    columns = {
        "input_ids": _list_array([row.ids for row in rows], pa.int32()),
        "doc_lens": _list_array([row.doc_lens for row in rows], pa.int32()),
    }
    masks = [row.mask for row in rows if row.mask is not None]
    if masks:
        columns["labels_mask"] = _list_array(masks, pa.bool_())
    digest = hashlib.sha256()
    for row in rows:
        for part in (row.ids, row.doc_lens, *((row.mask,) if row.mask is not None else ())):
            digest.update(len(part).to_bytes(8, "little") + np.ascontiguousarray(part).tobytes())
    batch = pa.record_batch(columns)
    with atomic_file(path) as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    return {"name": path.name, "rows": len(rows), "sha256": digest.hexdigest()}


def _list_array(parts: Sequence[npt.NDArray[Any]], kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(parts), kind))


class RowTable:
    """The rows of one source and split, by number, over its shards. Reads nothing until asked."""

    def __init__(self, paths: Sequence[Path], rows: Sequence[int]) -> None:
        self._paths = paths
        self._ends = np.cumsum(rows, dtype=np.int64).tolist() if rows else []
        self._shards: dict[int, pa.RecordBatch] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def ids(self, row: int) -> Ids:
        """The tokens of a row, without a copy."""
        return cast(Ids, self._cell("input_ids", row).to_numpy())

    def doc_lens(self, row: int) -> Ids:
        return cast(Ids, self._cell("doc_lens", row).to_numpy())

    def mask(self, row: int) -> Mask | None:
        """Which tokens are to be learned; None where all are."""
        shard, _ = self._locate(row)
        if "labels_mask" not in self._shard(shard).schema.names:
            return None
        return cast(Mask, self._cell("labels_mask", row).to_numpy(zero_copy_only=False))

    def target_counts(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """How often each id is a target (not first in its row, not masked), by id: int64 [vocab_size]."""
        counts = np.zeros(vocab_size, np.int64)
        for batch in map(self._shard, range(len(self._paths))):
            tokens = batch.column("input_ids")
            learned = np.ones(len(tokens.values), bool)
            if "labels_mask" in batch.schema.names:
                learned = batch.column("labels_mask").values.to_numpy(zero_copy_only=False).copy()
            learned[tokens.offsets.to_numpy()[:-1]] = False
            counts += np.bincount(tokens.values.to_numpy()[learned], minlength=vocab_size)
        return counts

    def _cell(self, column: str, row: int) -> pa.Array:
        shard, inner = self._locate(row)
        array = self._shard(shard).column(column)
        offsets = array.offsets
        start = offsets[inner].as_py()
        return array.values.slice(start, offsets[inner + 1].as_py() - start)

    def _locate(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        shard = bisect_right(self._ends, row)
        return shard, row - (self._ends[shard - 1] if shard else 0)

    def _shard(self, index: int) -> pa.RecordBatch:
        if index not in self._shards:
            path = self._paths[index]
            try:
                self._shards[index] = pa.ipc.open_stream(pa.memory_map(str(path))).read_next_batch()
            except (OSError, pa.ArrowInvalid, StopIteration) as error:
                fix = "delete its folder and prepare again"
                raise UmbelError(f"cannot be read ({error})", where=str(path), fix=fix) from error
        return self._shards[index]
