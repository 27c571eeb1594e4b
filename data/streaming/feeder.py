"""A process that streams for a rank: ``python -m data.streaming.feeder``; task on stdin, batches on stdout.

One Arrow batch per step: the rows of its lanes. Their cursors after the step go in the batch's metadata, and
so does the error that ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from base.errors import UmbelError
from configs.schema import RunConfig
from configs.typed import build
from data.order.mixing import Numbers
from data.places.retry import BadFile
from data.rows.pack import Row

SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "source": pa.string(),
        "ids": pa.list_(pa.int32()),
        "mask": pa.list_(pa.bool_()),
        "doc_lens": pa.list_(pa.int32()),
        "doc_ids": pa.list_(pa.int64()),
    }
)


def encode_rows(numbers: Numbers, rows: Sequence[tuple[str, Row]]) -> pa.RecordBatch:
    """Rows, with their numbers and sources, as a batch."""
    columns = [
        numbers,
        [source for source, _ in rows],
        [row.ids for _, row in rows],
        [row.mask for _, row in rows],
        [row.doc_lens for _, row in rows],
        [row.doc_ids for _, row in rows],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


def decode_row(batch: pa.RecordBatch, index: int) -> tuple[int, str, Row]:
    """Number, source and row at an index of a batch."""
    mask = batch["mask"][index]
    row = Row(
        batch["ids"][index].values.to_numpy(),
        mask.values.to_numpy(zero_copy_only=False) if mask.is_valid else None,
        batch["doc_lens"][index].values.to_numpy(),
        batch["doc_ids"][index].values.to_numpy(),
    )
    return batch["number"][index].as_py(), batch["source"][index].as_py(), row


def main(task: dict[str, Any], out: BinaryIO) -> None:
    """Stream what the task asks for until it is done, or nobody reads any more."""
    with pa.ipc.new_stream(out, SCHEMA) as writer:
        try:
            _stream(task, writer)
        except BrokenPipeError:
            raise
        except UmbelError as error:
            _tell(writer, error)
        except Exception as error:
            traceback.print_exc()
            _tell(writer, UmbelError(f"{type(error).__name__}: {error}".splitlines()[0], where="data"))


def _stream(task: dict[str, Any], writer: pa.RecordBatchStreamWriter) -> None:
    from data.prepared import open_prepared
    from data.stream import BatchStream, Share

    prepared = open_prepared(Path(task["folder"]))
    stream = BatchStream(prepared, build(RunConfig, task["config"]), task["left_out"])
    lanes, share = task["lanes"], Share(*task["share"])
    cursors = np.zeros((stream.order.lanes, len(stream.order.sources), 2), np.int64)
    cursors[lanes] = np.array(task["cursors"], np.int64)
    first, stop = task["steps"]
    reader = stream.lane_reader(lanes, first, cursors)
    for step in range(first, stop):
        numbers = stream.numbers(step, share)
        numbers = numbers[np.isin(numbers % stream.order.lanes, lanes)]
        batch = encode_rows(numbers, reader.read(numbers))
        reader.pass_to(stream.first_number(step + 1))
        writer.write_batch(batch, custom_metadata={"cursors": reader.cursors[lanes].tobytes()})


def _tell(writer: pa.RecordBatchStreamWriter, error: UmbelError) -> None:
    facts = {"what": error.what, "where": error.where, "fix": error.fix}
    kind = "bad file" if isinstance(error, BadFile) else ""
    writer.write_batch(
        encode_rows(np.empty(0, np.int64), []), custom_metadata={"error": json.dumps(facts), "kind": kind}
    )


if __name__ == "__main__":
    # When to end is for the worker to say: it may still need rows to finish its step and save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What a library prints must not get between the batches.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        main(json.load(sys.stdin), out)
    except BrokenPipeError:
        os._exit(1)
