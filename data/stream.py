"""Batches: what a rank gets at a step, as a pure function of the run and of (step, rank, world size)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from base.errors import UmbelError
from configs.batch import sequences_at
from configs.schema import Schedule
from data.order import GlobalOrder, RowRef
from data.prefetch import Prefetch
from data.prepared import Prepared, Split

IGNORED = -100
"""A label that is not learned: cross entropy's ``ignore_index``."""

LENGTH_MULTIPLE = 8
"""Unpacked micro-batches are padded to a multiple of this many tokens, which tensor cores like."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass.

    ``input_ids`` and ``labels`` are int64 [b, S]; ``labels[i, t]`` is the target of position t, already
    shifted, -100 where nothing is to be learned. ``first_slot`` is the number, in the whole run, of its first
    sequence. ``targets`` counts the labels to be learned.
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    first_slot: int
    targets: int


class BatchStream:
    """The train batches of a run. Holds no position: ask for any step, in any order, at any world size.

    Args:
        prepared: the rows.
        schedule: says how many sequences each step takes.
        seed: of the order.
        weights: relative share of each source (`data.sources.weights_of`).
    """

    def __init__(
        self, prepared: Prepared, schedule: Schedule, seed: int, weights: Mapping[str, float]
    ) -> None:
        self.prepared, self.schedule = prepared, schedule
        self.order = GlobalOrder(prepared, weights, seed)

    def slots(self, step: int) -> range:
        """The sequences of the run that 1-based ``step`` consumes."""
        return range(sequences_at(self.schedule, step - 1), sequences_at(self.schedule, step))

    def rank_slots(self, step: int, rank: int, world_size: int) -> range:
        """The block of ``slots(step)`` that one rank consumes."""
        slots = self.slots(step)
        each = len(slots) // world_size
        return slots[rank * each : (rank + 1) * each]

    def micro_batches(self, step: int, rank: int, world_size: int, micro_batch: int) -> list[MicroBatch]:
        """What ``rank`` of ``world_size`` computes at 1-based ``step``, in order.

        The global batch is cut into micro-batches of ``micro_batch`` slots, and ranks take consecutive ones:
        which rows share a micro-batch does not depend on the world size.

        Raises:
            UmbelError: the step's batch is not divisible by world_size × micro_batch.
        """
        batch = len(self.slots(step))
        if batch % (world_size * micro_batch):
            raise UmbelError(
                f"the {batch} sequences of step {step} are not divisible by {world_size} processes × "
                f"micro_batch {micro_batch}",
                where="schedule.global_batch",
            )
        mine = self.rank_slots(step, rank, world_size)
        return [self._micro_batch(mine[k : k + micro_batch]) for k in range(0, len(mine), micro_batch)]

    def prefetch(
        self, steps: range, rank: int, world_size: int, micro_batch: int, depth: int = 2
    ) -> Prefetch[list[MicroBatch]]:
        """``micro_batches`` of each step in ``steps``, loaded ahead in a thread."""
        return Prefetch(lambda step: self.micro_batches(step, rank, world_size, micro_batch), steps, depth)

    def held_out(self, source: str, sequences: int, micro_batch: int) -> list[MicroBatch]:
        """The first ``sequences`` held-out rows of a source (all, where there are fewer), in order.

        The last micro-batch may be smaller; ``first_slot`` counts the rows.
        """
        count = min(sequences, len(self.prepared.rows(source, "held_out")))
        rows = [RowRef(source, row) for row in range(count)]
        return [
            self._assemble(rows[k : k + micro_batch], "held_out", k) for k in range(0, count, micro_batch)
        ]

    def _micro_batch(self, slots: range) -> MicroBatch:
        return self._assemble([self.order[slot] for slot in slots], "train", slots.start)

    def _assemble(self, refs: Sequence[RowRef], split: Split, first_slot: int) -> MicroBatch:
        """Rows to padded inputs and shifted labels."""
        tables = [self.prepared.rows(ref.source, split) for ref in refs]
        rows = [table.ids(ref.row) for table, ref in zip(tables, refs, strict=True)]
        masks = [table.mask(ref.row) for table, ref in zip(tables, refs, strict=True)]
        length = self._length(max(len(row) for row in rows) - 1)
        input_ids = np.full((len(rows), length), self.prepared.pad_id, np.int64)
        labels = np.full((len(rows), length), IGNORED, np.int64)
        for index, (row, mask) in enumerate(zip(rows, masks, strict=True)):
            input_ids[index, : len(row) - 1] = row[:-1]
            labels[index, : len(row) - 1] = row[1:] if mask is None else np.where(mask[1:], row[1:], IGNORED)
        return MicroBatch(input_ids, labels, first_slot, int((labels != IGNORED).sum()))

    def _length(self, longest: int) -> int:
        rounded = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        return min(rounded, self.prepared.sequence_length)
