"""A step's batch laid open: which ids a rank gets, and what they say in words."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from base.errors import UmbelError
from data.order.mixing import Numbers
from data.rows.pack import Row
from data.stream import IGNORED, BatchStream, Rows, Share
from data.streaming.lanes import Cursors


class Start(NamedTuple):
    """From where a stream is read: ``cursors`` are those after ``step`` steps (a checkpoint's, say)."""

    step: int = 0
    cursors: Cursors | None = None


BEGINNING = Start()


def batches(
    stream: BatchStream, steps: range, share: Share | None = None, start: Start = BEGINNING
) -> list[dict[str, Any]]:
    """What a rank would get: one entry per step and micro-batch, in order.

    Each holds ``step, rank, world_size, first_slot, targets, numbers, sources, documents, doc_lens,
    input_ids, mask``; ``documents`` are the numbers of each row's documents in their source, ``mask`` is 1
    where a target is learned. Without a share: the whole step, as one micro-batch.

    Raises:
        UmbelError: no such step or rank.
    """
    _check_steps(steps)
    found, rows, given = [], None, share
    for step in steps:
        share = given or Share(micro_batch=len(stream.slots(step)))
        if rows is None:
            rows = Kept(stream.rows(share, start.step + 1, start.cursors))
        for batch in stream.micro_batches(rows, step, share):
            kept = rows.take(len(batch.input_ids))
            found.append(
                {
                    "step": step,
                    "rank": share.rank,
                    "world_size": share.world_size,
                    "first_slot": batch.first_slot,
                    "targets": batch.targets,
                    "numbers": [number for number, _, _ in kept],
                    "sources": [source for _, source, _ in kept],
                    "documents": [row.doc_ids.tolist() for _, _, row in kept],
                    "doc_lens": [row.doc_lens.tolist() for _, _, row in kept],
                    "input_ids": batch.input_ids.tolist(),
                    "mask": (batch.labels != IGNORED).astype(int).tolist(),
                }
            )
    return found


class Kept:
    """Rows as they are read, kept until they are taken."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._kept: list[tuple[int, str, Row]] = []

    @property
    def cursors(self) -> Cursors | None:
        return self._rows.cursors

    def read(self, numbers: Numbers) -> list[tuple[str, Row]]:
        found = self._rows.read(numbers)
        self._kept += [(number, *each) for number, each in zip(numbers.tolist(), found, strict=True)]
        return found

    def pass_to(self, number: int) -> None:
        self._rows.pass_to(number)

    def take(self, count: int) -> list[tuple[int, str, Row]]:
        """The oldest ``count`` of them, which then go."""
        kept, self._kept = self._kept[:count], self._kept[count:]
        return kept


def sequences(
    stream: BatchStream, step: int, slot: int | None = None, start: Start = BEGINNING
) -> list[dict[str, Any]]:
    """The sequences of a step as text: ``slot`` (within the step, from 0), ``sequence`` (within the run),
    ``number`` (in the global order: what ``data.skip`` counts), ``source, tokens, text``, ``learned`` (the
    text of the targets, where a chat's mask makes that a part), and ``documents``: ``number``, ``file``,
    ``row`` in the file, ``tokens`` in this sequence, and ``text``.

    Raises:
        UmbelError: a slot that the step does not have.
    """
    _check_steps(range(step, step + 1))
    slots = stream.slots(step)
    if slot is not None and not 0 <= slot < len(slots):
        raise UmbelError(f"step {step} has slots 0 to {len(slots) - 1}", where=f"--slot {slot}")
    chosen = range(len(slots)) if slot is None else [slot]
    lanes = sorted({stream.order.number(slots[index]) % stream.order.lanes for index in chosen})
    rows = stream.rows_of(lanes, start.step + 1, start.cursors)
    return [_sequence(stream, rows, slots, index) for index in chosen]


def _sequence(stream: BatchStream, rows: Rows, slots: range, index: int) -> dict[str, Any]:
    number = stream.order.number(slots[index])
    [(source, row)] = rows.read(np.array([number]))
    decode = stream.prepared.tokenizer.decode
    return {
        "slot": index,
        "sequence": slots[index],
        "number": number,
        "source": source,
        "tokens": len(row.ids),
        "text": decode(row.ids.tolist()),
        "learned": None if row.mask is None else decode(row.ids[row.mask].tolist()),
        "documents": _documents(stream, source, row),
    }


def _documents(stream: BatchStream, source: str, row: Row) -> list[dict[str, Any]]:
    files = stream.prepared.manifest["sources"][source]["files"]
    ends = list(accumulate(file["rows"] for file in files))
    found = []
    parts = np.split(row.ids, np.cumsum(row.doc_lens)[:-1])
    for number, part in zip(row.doc_ids.tolist(), parts, strict=True):
        index = bisect_right(ends, number)
        found.append(
            {
                "number": number,
                "file": files[index]["name"],
                "row": number - (ends[index - 1] if index else 0),
                "tokens": len(part),
                "text": stream.prepared.tokenizer.decode(part.tolist()),
            }
        )
    return found


def _check_steps(steps: range) -> None:
    if not steps or steps[0] < 1:
        raise UmbelError("steps count from 1", where="--step" if len(steps) == 1 else "--steps")
