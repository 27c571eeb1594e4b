"""Examples on their way from the process that tokenized them to the one that packs them: an Arrow file.

A file, and no pipe: of a compressed file of any size, which is one part, neither holds more than a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.tokens.encode import Example

Split = tuple[Example, bool]
"""An example, and whether it is held out."""

_SCHEMA = pa.schema(
    {
        "ids": pa.list_(pa.int32()),
        "document": pa.int64(),
        "held_out": pa.bool_(),
        "mask": pa.list_(pa.bool_()),
    }
)


def write_examples(path: Path, batches: Iterable[Sequence[Split]]) -> None:
    """Write batches of examples. A killed writer leaves a file that is cut short; who starts anew does not
    look at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as writer:
        for batch in batches:
            columns = [
                _lists([example.ids for example, _ in batch], pa.int32()),
                pa.array([example.document for example, _ in batch], pa.int64()),
                pa.array([held_out for _, held_out in batch], pa.bool_()),
                pa.array([example.mask for example, _ in batch], _SCHEMA.field("mask").type),
            ]
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))


def read_examples(path: Path) -> Iterator[list[Split]]:
    """The batches again; their arrays lie in the file, which must stay until they are used up."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            yield list(_examples(batch))


def _lists(parts: Sequence[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(parts), kind))


def _examples(batch: pa.RecordBatch) -> Iterator[Split]:
    ids, masks = batch["ids"], batch["mask"]
    values, offsets = ids.values.to_numpy(), ids.offsets.to_numpy()
    learned, mask_offsets = masks.values.to_numpy(zero_copy_only=False), masks.offsets.to_numpy()
    has_mask = masks.is_valid().to_numpy(zero_copy_only=False)
    documents, held_out = batch["document"].to_pylist(), batch["held_out"].to_pylist()
    for index, (document, held) in enumerate(zip(documents, held_out, strict=True)):
        mask = learned[mask_offsets[index] : mask_offsets[index + 1]] if has_mask[index] else None
        yield Example(values[offsets[index] : offsets[index + 1]], mask, document), held
