"""Batches: what a rank gets at a step, as a pure function of the run and of (step, rank, world size)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from base.errors import UmbelError
from configs.batch import sequences_at
from configs.schema import RunConfig, Source
from data.files import OpenSource
from data.micro_batch import IGNORED, MicroBatch, micro_batches
from data.order.document_order import DocumentOrder
from data.order.global_order import GlobalOrder
from data.order.mixing import Numbers
from data.order.shuffle import shuffled
from data.order.weights import plan
from data.prefetch import Prefetch
from data.prepare import cache_folder, open_from_manifest
from data.prepared import Prepared
from data.rows.pack import Row
from data.sources import sources_of
from data.streaming.documents import DocumentStore
from data.streaming.lanes import Cursors, LaneReader, RowMaker, StreamedSource
from data.streaming.look_ahead import LookAhead

__all__ = ["IGNORED", "BatchStream", "MicroBatch", "Share", "StepBatches"]

DEPTH = 4
"""Steps that are made ahead."""


class Share(NamedTuple):
    """A rank's part of every step. Which rows share a micro-batch does not depend on the world size.

    The global batch is cut into micro-batches of ``micro_batch`` slots, dealt to the ranks in turn. As every
    batch of the run divides evenly, each lane of a streamed run then stays with one rank, whatever the ramp.
    """

    rank: int = 0
    world_size: int = 1
    micro_batch: int = 1

    def of(self, slots: range) -> list[range]:
        """The micro-batches, as ranges of slots, that the rank takes of a step's slots.

        Raises:
            UmbelError: the batch is not divisible by world_size × micro_batch.
        """
        if len(slots) % (self.world_size * self.micro_batch):
            raise UmbelError(
                f"a step's {len(slots)} sequences are not divisible by {self.world_size} processes × "
                f"micro_batch {self.micro_batch}",
                where="schedule.global_batch",
            )
        stride = self.world_size * self.micro_batch
        firsts = range(self.rank * self.micro_batch, len(slots), stride)
        return [slots[first : first + self.micro_batch] for first in firsts]

    def owns(self, lane: int) -> bool:
        """Whether a lane's rows go to this rank."""
        return lane // self.micro_batch % self.world_size == self.rank


class StepBatches(NamedTuple):
    """A rank's micro-batches of a step. ``cursors`` are where its lanes stand after it, zero for the lanes
    of others, None in prepared mode: they are all of a stream's state that a step number does not give."""

    step: int
    batches: list[MicroBatch]
    cursors: Cursors | None


class Rows(Protocol):
    """Rows of the global order by number: any (prepared), or those of some lanes, forward (streaming).

    ``cursors`` are where the lanes stand after what was read; None where there are none.
    """

    @property
    def cursors(self) -> Cursors | None: ...

    def read(self, numbers: Numbers) -> list[tuple[str, Row]]: ...

    def pass_to(self, number: int) -> None: ...


class PreparedRows:
    """Rows of prepared sources: each epoch of a source in another order. Any number costs the same."""

    cursors: Cursors | None = None

    def __init__(self, prepared: Prepared, order: GlobalOrder) -> None:
        self._order = order
        self._tables = {name: prepared.rows(name, "train") for name in order.sources}
        self._shuffled = {
            name: shuffled(len(table), f"{order.seed} {name}") for name, table in self._tables.items()
        }

    def read(self, numbers: Numbers) -> list[tuple[str, Row]]:
        """The source and the row of each number of the order."""
        sources, ordinals = self._order.picks(numbers)
        found: dict[int, tuple[str, Row]] = {}
        for source in set(sources.tolist()):
            name, places = self._order.sources[source], np.flatnonzero(sources == source)
            rows = self._tables[name].rows(self._shuffled[name].take(ordinals[places]))
            found |= {place: (name, row) for place, row in zip(places.tolist(), rows, strict=True)}
        return [found[place] for place in range(len(numbers))]

    def pass_to(self, number: int) -> None:
        """Nothing to do: no row depends on those before it."""


class BatchStream:
    """The train batches of a run. Holds no position: ask for any step, at any world size.

    Args:
        prepared: the run's data; in streaming mode its manifest and held-out rows.
        config: the run's.
        left_out: names of files, by source, that a streamed run goes on without.
    """

    def __init__(
        self, prepared: Prepared, config: RunConfig, left_out: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.prepared, self.config, self.left_out = prepared, config, dict(left_out or {})
        self.schedule, self.data = config.schedule, config.data
        lanes = config.schedule.global_batch
        phases = plan(self.data, prepared.manifest, self.total)
        self.order = GlobalOrder(phases, self.data.skip, lanes, config.run.seed)

    @property
    def total(self) -> int:
        """Sequences of the whole run."""
        return sequences_at(self.schedule, self.schedule.steps)

    @property
    def cursors_shape(self) -> tuple[int, int, int]:
        """Of `data.streaming.lanes.Cursors`."""
        return self.order.lanes, len(self.order.sources), 2

    @property
    def is_streaming(self) -> bool:
        return self.data.mode == "streaming"

    def slots(self, step: int) -> range:
        """The sequences of the run that 1-based ``step`` consumes."""
        return range(sequences_at(self.schedule, step - 1), sequences_at(self.schedule, step))

    def rows(self, share: Share, step: int = 1, cursors: Cursors | None = None) -> Rows:
        """A rank's rows from the start of 1-based ``step``; ``cursors`` are those after the step before."""
        return self.rows_of([lane for lane in range(self.order.lanes) if share.owns(lane)], step, cursors)

    def rows_of(self, lanes: Sequence[int], step: int = 1, cursors: Cursors | None = None) -> Rows:
        """Some lanes' rows from the beginning of 1-based ``step`` on."""
        if not self.is_streaming:
            return PreparedRows(self.prepared, self.order)
        return self.lane_reader(lanes, step, cursors)

    def lane_reader(self, lanes: Sequence[int], step: int, cursors: Cursors | None) -> LaneReader:
        """`rows_of` in streaming mode."""
        start = self.first_number(step)
        return LaneReader(self.order, self._sources, self._maker, lanes, start, cursors)

    def first_number(self, step: int) -> int:
        """The order's first number that the steps before 1-based ``step`` have left."""
        consumed = self.slots(step).start
        return self.order.number(consumed - 1) + 1 if consumed else 0

    def numbers(self, step: int, share: Share) -> Numbers:
        """The order's numbers whose rows a rank takes at 1-based ``step``: int64 [rows]."""
        dealt = self.order.numbers(self.slots(step)).reshape(-1, share.world_size, share.micro_batch)
        return dealt[:, share.rank].reshape(-1)

    def micro_batches(self, rows: Rows, step: int, share: Share) -> list[MicroBatch]:
        """What a rank computes at 1-based ``step``, in order."""
        parts = share.of(self.slots(step))
        read = [row for _, row in rows.read(self.numbers(step, share))]
        return self._assemble(read, parts)

    def read(self, steps: range, share: Share, cursors: Cursors | None = None) -> Prefetch[StepBatches]:
        """A rank's batches of consecutive steps, made ahead in the background.

        ``cursors`` are those after the step before the first; None at the beginning, or in prepared mode.
        """
        if self.is_streaming and self.data.workers and steps:
            from data.streaming.feeders import Feeders

            feeders = Feeders(self, steps, share, cursors)
            return Prefetch(lambda step: self._step(feeders, step, share), steps, DEPTH, feeders.close)
        rows = self.rows(share, steps.start, cursors)
        return Prefetch(lambda step: self._step(rows, step, share), steps, DEPTH)

    def held_out(self, source: str, sequences: int, size: int) -> list[MicroBatch]:
        """The first ``sequences`` held-out rows of a source (all, where there are fewer), in order, in
        micro-batches of ``size``; the last may be smaller. ``first_slot`` counts the rows."""
        table = self.prepared.rows(source, "held_out")
        count = min(sequences, len(table))
        parts = [range(first, min(first + size, count)) for first in range(0, count, size)]
        return self._assemble(table.rows(np.arange(count)), parts)

    def _step(self, rows: Rows, step: int, share: Share) -> StepBatches:
        batches = self.micro_batches(rows, step, share)
        rows.pass_to(self.first_number(step + 1))
        cursors = rows.cursors
        return StepBatches(step, batches, None if cursors is None else cursors.copy())

    @cached_property
    def _maker(self) -> RowMaker:
        packing = self.data.packing == "concat"
        length, held_out = self.prepared.sequence_length, self.data.held_out
        return RowMaker(self.prepared.tokenizer, length, packing, held_out)

    @cached_property
    def _sources(self) -> dict[str, StreamedSource]:
        cache, declared = cache_folder(self.data), sources_of(self.data)
        return {name: self._source(self.opened[name], declared[name], cache) for name in self.order.sources}

    @cached_property
    def opened(self) -> dict[str, OpenSource]:
        """The sources as the manifest knows them, less the files that are left out."""
        opened = open_from_manifest(self.data, self.prepared.manifest)
        for name, files in self.left_out.items():
            opened[name] = replace(opened[name], skipped=(*opened[name].skipped, *files))
        return opened

    def _source(self, opened: OpenSource, declared: Source, cache: Path) -> StreamedSource:
        if not opened.rows:
            raise UmbelError("holds no text", where=opened.key, fix="check its path and its field")
        limit = int(self.data.cache_gb * 1e9)
        store = DocumentStore(opened, declared.filters, cache / "documents", limit)
        order = DocumentOrder(opened.rows, self.data.shuffle_window, f"{self.order.seed} {opened.name}")
        return StreamedSource(store, order, declared.max_epochs, opened.key, LookAhead(store, order))

    def _assemble(self, rows: Sequence[Row], parts: Sequence[range]) -> list[MicroBatch]:
        restart = self.data.intra_document_mask
        pad_id, longest = self.prepared.pad_id, self.prepared.sequence_length
        return micro_batches(rows, parts, pad_id, longest, restart_positions=restart)
