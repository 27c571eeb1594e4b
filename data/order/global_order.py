"""The global order: which row is the n-th sequence of the run. No rank or world size appears in it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from data.order.mixing import Mixing, Numbers, Picks
from data.order.shuffle import Shuffled, shuffled

Phases = Sequence[tuple[int, Mapping[str, float]]]
"""(first sequence, row weights by source) of each phase; the first begins at 0."""


class GlobalOrder:
    """Sequences to rows, as a pure function of (phases, skipped ranges, lanes, seed).

    The order's *numbers* count from 0; the run's sequence n has ``number(n)``, which jumps over the skipped
    ranges. In every round of ``lanes`` numbers the rows of the mixture are dealt to the lanes in another,
    seeded order, so that each lane sees all sources whatever the weights. A phase changes the weights
    from the next round on; every source goes on where it was.

    Args:
        phases: see `Phases`.
        skip: ascending ranges ``[first, end)`` of numbers that are left out.
        lanes: sequences of the largest global batch.
        seed: of the run.
    """

    def __init__(self, phases: Phases, skip: Sequence[Sequence[int]], lanes: int, seed: int) -> None:
        self.skip = [(first, end) for first, end in skip]
        self.lanes, self.seed = lanes, seed
        self._mixings = [Mixing(weights) for _, weights in phases]
        # With the next round: in one that has begun, rows of the old weights are dealt already.
        self._starts = [0, *(-(-self.number(first) // lanes) * lanes for first, _ in phases[1:])]
        self._before = [dict.fromkeys(self.sources, 0)]
        for index, mixing in enumerate(self._mixings[:-1]):
            given = mixing.counts(self._starts[index + 1] - self._starts[index])
            self._before.append(
                {name: count + given.get(name, 0) for name, count in self._before[-1].items()}
            )

    @cached_property
    def sources(self) -> list[str]:
        """The sources of all phases, sorted."""
        return sorted({name for mixing in self._mixings for name in mixing.sources})

    def number(self, sequence: int) -> int:
        """The order's number of the run's ``sequence``, from 0."""
        for first, end in self.skip:
            if sequence < first:
                break
            sequence += end - first
        return sequence

    def numbers(self, sequences: range) -> Numbers:
        """`number` of several: int64 [sequences]."""
        numbers = np.arange(sequences.start, sequences.stop, sequences.step, dtype=np.int64)
        for first, end in self.skip:
            numbers[numbers >= first] += end - first
        return numbers

    def picks(self, numbers: Numbers) -> Picks:
        """The rows of some numbers: their sources, as indices of `sources`, and each one's ordinal among
        that source's rows in the order."""
        positions = numbers - numbers % self.lanes + self._deal.take(numbers)
        phases = np.searchsorted(self._starts, positions, "right") - 1
        picks = Picks(np.empty_like(positions), np.empty_like(positions))
        for phase in set(phases.tolist()):
            among, mixing = phases == phase, self._mixings[phase]
            found = mixing.picks(positions[among] - self._starts[phase])
            before = np.array([self._before[phase][name] for name in mixing.sources])
            picks.sources[among] = self._indices[phase][found.sources]
            picks.ordinals[among] = before[found.sources] + found.ordinals
        return picks

    def counts(self, sequences: int) -> dict[str, int]:
        """Rows of each source up to the run's first ``sequences``, give or take a round; skipped ones count:
        they are used up."""
        position = self.number(sequences - 1) + 1 if sequences else 0
        phase = bisect_right(self._starts, position) - 1
        given = self._mixings[phase].counts(position - self._starts[phase])
        return {name: count + given.get(name, 0) for name, count in self._before[phase].items()}

    @cached_property
    def _indices(self) -> list[Numbers]:
        """Where the sources of each phase stand in `sources`."""
        found = [[self.sources.index(name) for name in mixing.sources] for mixing in self._mixings]
        return [np.array(indices, np.int64) for indices in found]

    @cached_property
    def _deal(self) -> Shuffled:
        return shuffled(self.lanes, f"{self.seed} lanes")
