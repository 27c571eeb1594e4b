"""Which nodes a run does without: those to which too many faults were put down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from launch.supervise.ending import Ending

BLAMED = ("killed", "device", "node", "hang")
"""Causes of a failure that say more of a machine than of the run."""


def blame(ending: Ending) -> tuple[str, str] | None:
    """The node an ending is put down to, and why; None for nobody's fault, or the run's own."""
    failure = ending.failure
    if failure is None or failure.node is None or failure.cause not in BLAMED:
        return None
    return failure.node, failure.error


def left_out(events: Iterable[dict[str, Any]], limit: int) -> list[str]:
    """The nodes with ``limit`` (`supervision.blame`) faults or more."""
    return sorted(node for node, faults in _faults(events).items() if faults >= limit)


def choose(
    nodes: Sequence[str], count: int, events: Iterable[dict[str, Any]], limit: int
) -> list[str] | None:
    """The ``count`` least blamed of the nodes, in their order; None where too few are left."""
    faults = _faults(events)
    fit = sorted((node for node in nodes if faults[node] < limit), key=lambda node: faults[node])[:count]
    return [node for node in nodes if node in fit] if len(fit) == count else None


def _faults(events: Iterable[dict[str, Any]]) -> Counter[str]:
    return Counter(event["node"] for event in events if event["event"] == "blamed")
