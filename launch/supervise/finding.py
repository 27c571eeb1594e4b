"""What a detector finds, and what a detector is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a running run that its people want to know.

    Attributes:
        kind: the name of the event it becomes.
        text: one line for a person.
        fatal: whether the workers have to be ended for it.
        node: the node it is put down to, if it is one.
        alert: whether somebody is to be told at once.
        facts: what else the event holds.
    """

    kind: str
    text: str
    fatal: bool = False
    node: str | None = None
    alert: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


class Detector(Protocol):
    """Looks at what a run leaves behind while it trains. What it said before stands in the run's events."""

    def look(self, now: float) -> Sequence[Finding]:
        """What is new at ``now`` (Unix time). Called about twice a second; never waits for anything."""
