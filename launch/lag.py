"""Which rank a run waits for, by what the newest report of every node says of its whole attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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


def lags(reports: Iterable[NodeReport], start: Mapping[str, Any]) -> dict[int, Lag]:
    """The ranks that are slower than the others, since the attempt's ``start`` event."""
    if not start:
        return {}
    nodes = {beat.rank: (report.node, beat) for report in reports for beat in report.beats}
    began, first = datetime.fromisoformat(start["time"]).timestamp(), start["step"]
    paces = {
        rank: _pace(beat, began, first)
        for rank, (_, beat) in nodes.items()
        if beat.step - first >= _FEWEST_STEPS
    }
    found = slower(paces)
    return {rank: Lag(rank=rank, node=nodes[rank][0], share=slow.share) for rank, slow in found.items()}


def slowest(found: Mapping[int, Lag]) -> Lag | None:
    """The one that holds up the others most, if it can be told from noise."""
    worst = max(found.values(), key=lambda lag: lag.share, default=None)
    return worst if worst is not None and worst.share >= NOISE else None


def _pace(beat: Beat, began: float, first: int) -> Pace:
    """Means over the attempt, what is between its steps included: single steps tell little."""
    steps = beat.step - first
    return Pace(
        step=(beat.since - began) / steps,
        waited=beat.waited / steps,
        probe=beat.worked / beat.probes if beat.probes >= _FEWEST_PROBES else None,
    )
