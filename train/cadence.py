"""When to save: every so many steps, every so many minutes, or as often as pays.

A save costs time; a failure costs the work since the last one. Between the two lies an interval that loses
least (Young 1974, doi:10.1145/361147.361115; Daly 2006, doi:10.1016/j.future.2004.11.016).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from configs.schema import Checkpoint, Cluster

FIRST_MINUTES = 1.0
"""``auto`` saves this early before it has measured a save, so that the self-check comes soon."""

WRITING_SLOWS = 0.05
"""Share of a step's speed taken to be lost while a checkpoint is being written beside it. The interval goes
with the root of a save's cost and the loss near its lowest point is flat: a rough number will do."""

IDLE_TIMES = 2.0
"""``auto`` waits at least so many times what writing takes: a disk that only writes checkpoints serves
nothing else."""

_RECENT = 5
"""Saves whose median is what one costs: the disk of a cluster is not the same every hour."""


def optimal_interval(cost: float, mtbf: float) -> float:
    """Seconds from one save to the next that lose least time.

    Daly's higher-order form; he counts the work between two saves, this also the save.

    Args:
        cost: seconds that one save takes from training.
        mtbf: mean seconds between two failures of the job.
    """
    if cost >= 2 * mtbf:
        return mtbf + cost
    ratio = cost / (2 * mtbf)
    return math.sqrt(2 * cost * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9)


def expected_loss(interval: float, cost: float, restart: float, mtbf: float) -> float:
    """Share of a job's time, 0 to 1, that saves, restarts and repeated work take.

    Daly's complete model: failures are independent and come at any time, also during a save or a restart.

    Args:
        interval: seconds from one save to the next, more than ``cost``.
        cost: seconds that one save takes from training.
        restart: seconds from a failure until training goes on.
        mtbf: mean seconds between two failures of the job.
    """
    taken = mtbf * math.exp(restart / mtbf) * math.expm1(interval / mtbf)
    return 1 - (interval - cost) / taken


def expected(
    config: Checkpoint, cluster: Cluster, saves: Iterable[tuple[float, float]], step_seconds: float
) -> tuple[float, float] | None:
    """Seconds from save to save in a run's next hours, and the share of them that saves and failures take.

    Restarts are left out: how long they take depends on queues. None where nothing was measured, or where it
    saves at its end alone.

    Args:
        saves: what `Cadence.saved` was told of the newest ones, (blocked, seconds).
        step_seconds: of one step.
    """
    cadence = Cadence(config, cluster)
    for blocked, seconds in saves:
        cadence.saved(0, 0.0, blocked, seconds)
    by_steps = math.inf if config.every == "auto" or not config.every else config.every * step_seconds
    interval = min(by_steps, cadence.interval)
    if cadence.cost is None or interval == math.inf:
        return None
    interval = max(interval, cadence.cost)
    return interval, expected_loss(interval, cadence.cost, 0.0, cadence.mtbf)


class Cadence:
    """Says at which steps a start of a run saves. Rank 0 alone asks it: clocks differ.

    ``now`` is seconds of one clock that never goes back (`time.monotonic`).
    """

    def __init__(self, config: Checkpoint, cluster: Cluster) -> None:
        self.config = config
        self.mtbf = 3600 * cluster.mtbf_hours / cluster.nodes
        self.last: float | None = None
        self.asked: int | None = None
        self.costs: deque[float] = deque(maxlen=_RECENT)
        self.writes: deque[float] = deque(maxlen=_RECENT)

    def due(self, step: int, now: float) -> bool:
        """Whether the state after ``step`` is to be saved. Asked once at the start of each step, in order."""
        if self.last is None:
            self.last = now
        due = self._by_step(step) or now - self.last >= self.interval
        if due:
            self.last, self.asked = now, step
        return due

    def saved(self, step: int, now: float, blocked: float, seconds: float) -> None:
        """Learn from a save of ``step`` that is on the disk ``now``, whoever asked for it.

        Args:
            blocked: seconds for which it held the loop, without the self-check that only the first one has.
            seconds: from its begin until it was on the disk.
        """
        beside = max(0.0, seconds - blocked)
        self.costs.append(blocked + WRITING_SLOWS * beside)
        self.writes.append(beside)
        if step != self.asked:
            self.last = now - seconds if self.last is None else max(self.last, now - seconds)

    @property
    def cost(self) -> float | None:
        """Seconds that one save takes from training; None before any was measured."""
        return statistics.median(self.costs) if self.costs else None

    @property
    def interval(self) -> float:
        """Seconds from the start of one save to the next; infinite where steps alone decide."""
        minutes = math.inf if self.config.every_minutes is None else self.config.every_minutes
        return min(60 * minutes, self._auto() if self.config.every == "auto" else math.inf)

    def _by_step(self, step: int) -> bool:
        every = self.config.every
        return every != "auto" and every > 0 and step % every == 0

    def _auto(self) -> float:
        if self.cost is None:
            return 60 * min(FIRST_MINUTES, self.config.max_minutes)
        best = optimal_interval(self.cost, self.mtbf)
        shortest = (1 + IDLE_TIMES) * statistics.median(self.writes)
        return max(min(best, 60 * self.config.max_minutes), shortest)
