"""A step's batch laid open: which ids a rank gets, and what they say in words."""

from __future__ import annotations

from typing import Any

from base.errors import UmbelError
from data.stream import IGNORED, BatchStream


def batches(
    stream: BatchStream, steps: range, rank: int, world_size: int, micro_batch: int | None = None
) -> list[dict[str, Any]]:
    """What ``rank`` of ``world_size`` would get: one entry per step and micro-batch, in order.

    Each holds ``step, rank, world_size, first_slot, targets, sources, rows, input_ids, mask``; ``mask`` is 1
    where a target is learned. ``micro_batch`` None takes the rank's whole share as one.
    """
    _check_steps(steps)
    if not 0 <= rank < world_size:
        raise UmbelError(f"ranks of {world_size} are 0 to {world_size - 1}", where=f"--rank {rank}")
    found = []
    for step in steps:
        size = micro_batch or max(1, len(stream.slots(step)) // world_size)
        for batch in stream.micro_batches(step, rank, world_size, size):
            refs = [stream.order[batch.first_slot + index] for index in range(len(batch.input_ids))]
            found.append(
                {
                    "step": step,
                    "rank": rank,
                    "world_size": world_size,
                    "first_slot": batch.first_slot,
                    "targets": batch.targets,
                    "sources": [ref.source for ref in refs],
                    "rows": [ref.row for ref in refs],
                    "input_ids": batch.input_ids.tolist(),
                    "mask": (batch.labels != IGNORED).astype(int).tolist(),
                }
            )
    return found


def sequences(stream: BatchStream, step: int, slot: int | None = None) -> list[dict[str, Any]]:
    """The sequences of a step as text: ``slot`` (within the step, from 0), ``sequence`` (within the run),
    ``source, row, doc_lens, tokens, text``, and ``learned``: the text of the targets, where that is a part.

    Raises:
        UmbelError: a slot that the step does not have.
    """
    _check_steps(range(step, step + 1))
    slots = stream.slots(step)
    if slot is not None and not 0 <= slot < len(slots):
        raise UmbelError(f"step {step} has slots 0 to {len(slots) - 1}", where=f"--slot {slot}")
    return [_sequence(stream, slots, index) for index in (range(len(slots)) if slot is None else [slot])]


def _sequence(stream: BatchStream, slots: range, index: int) -> dict[str, Any]:
    ref = stream.order[slots[index]]
    table = stream.prepared.rows(ref.source, "train")
    ids, mask = table.ids(ref.row), table.mask(ref.row)
    decode = stream.prepared.tokenizer.decode
    return {
        "slot": index,
        "sequence": slots[index],
        "source": ref.source,
        "row": ref.row,
        "doc_lens": table.doc_lens(ref.row).tolist(),
        "tokens": len(ids),
        "text": decode(ids.tolist()),
        "learned": None if mask is None else decode(ids[mask].tolist()),
    }


def _check_steps(steps: range) -> None:
    if not steps or steps[0] < 1:
        raise UmbelError("steps count from 1", where="--step" if len(steps) == 1 else "--steps")
