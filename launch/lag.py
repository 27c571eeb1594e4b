"""Which rank a run waits for, by what the newest report of every node says of its whole attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launch.supervise.detect.stragglers import Pace, slower
from record.heartbeats import Beat, NodeReport

NOISE = 0.02
"""Shares below this tell nothing."""

_FEWEST_STEPS = 10
_FEWEST_PROBES = 3


@dataclass(frozen=True, kw_only=True)
class Lag:
    """A rank that is ``share`` slower than the others (0.09: by 9 %)."""

    rank: int
    node: str
    share: float


def lags(reports: Iterable[NodeReport], step_seconds: float | None, first_step: int) -> dict[int, Lag]:
    """The ranks that are slower than the others.

    Args:
        step_seconds: what a step takes; None: not known.
        first_step: the step after which the attempt went on.
    """
    nodes = {beat.rank: (report.node, beat) for report in reports for beat in report.beats}
    paces = {
        rank: _pace(beat, step_seconds or 0.0, first_step)
        for rank, (_, beat) in nodes.items()
        if beat.step - first_step >= _FEWEST_STEPS
    }
    found = slower(paces)
    return {rank: Lag(rank=rank, node=nodes[rank][0], share=slow.share) for rank, slow in found.items()}


def slowest(found: Mapping[int, Lag]) -> Lag | None:
    """The one that holds up the others most, if it can be told from noise."""
    worst = max(found.values(), key=lambda lag: lag.share, default=None)
    return worst if worst is not None and worst.share >= NOISE else None


def _pace(beat: Beat, step_seconds: float, first_step: int) -> Pace:
    return Pace(
        step=step_seconds,
        waited=beat.waited / (beat.step - first_step),
        probe=beat.worked / beat.probes if beat.probes >= _FEWEST_PROBES else None,
    )
