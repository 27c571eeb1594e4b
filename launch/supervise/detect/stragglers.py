"""Ranks that are slower than the others, window after window: all wait for them at every step.

Step times cannot tell, for all ranks have the same. Two other things can, and neither waits for a device:

- how long a rank waits where all meet once a step: one that comes late waits least, whatever keeps it;
- how long its device takes for a fixed piece of work that needs nobody else (`train.probe`).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from launch.supervise.detect.reports import Reports, beats, nodes_of
from launch.supervise.finding import Finding
from record.events import read_events
from record.folder import RunFolder
from record.heartbeats import Beat

WINDOW_SECONDS = 60.0
WINDOW_STEPS = 20
WINDOWS = 3
"""A window holds so much at least; a rank is named after so many in a row."""

_FEWEST_PROBES = 3


@dataclass(frozen=True)
class Pace:
    """One rank over one window; seconds.

    Attributes:
        waited: for the others, per step.
        probe: of its device for the fixed piece of work; None where it was not timed.
    """

    step: float
    waited: float
    probe: float | None


class Slow(NamedTuple):
    """By what share of a step a rank is slower than the others, and how that shows."""

    share: float
    why: str


class StragglerDetector:
    """Names a slow rank once in an attempt."""

    def __init__(self, folder: RunFolder, attempt: int, share: float, reports: Reports) -> None:
        self.attempt, self.share, self.reports = attempt, share, reports
        self._told = {
            event["rank"]
            for event in read_events(folder)
            if event["event"] == "straggler" and event.get("attempt") == attempt
        }
        self._begin: Mapping[int, Beat] = {}
        self._streaks: Counter[int] = Counter()

    def look(self, now: float) -> Sequence[Finding]:
        """Closes a window when it is long enough."""
        reports = self.reports.newest(now)
        current = beats(reports)
        if not current or not self._goes_on(current):
            self._begin = current
            return []
        if not all(_is_window(self._begin[rank], beat) for rank, beat in current.items()):
            return []
        paces = {rank: pace(self._begin[rank], beat) for rank, beat in current.items()}
        self._begin = current
        slow = {rank: found for rank, found in slower(paces).items() if found.share > self.share}
        self._streaks = Counter({rank: self._streaks[rank] + 1 for rank in slow})
        named = [rank for rank in slow if self._streaks[rank] >= WINDOWS and rank not in self._told]
        self._told.update(named)
        return [self._finding(rank, slow[rank], nodes_of(reports)[rank]) for rank in named]

    def _goes_on(self, current: Mapping[int, Beat]) -> bool:
        """Whether these are the ranks with which the window began, and they had begun to make steps."""
        begun = {rank: beat.pid for rank, beat in self._begin.items() if beat.step}
        return begun == {rank: beat.pid for rank, beat in current.items()}

    def _finding(self, rank: int, slow: Slow, node: str) -> Finding:
        text = f"rank {rank} on {node} is {slow.share:.0%} slower than the others: {slow.why}"
        facts = {"rank": rank, "share": round(slow.share, 3), "attempt": self.attempt}
        return Finding(kind="straggler", text=text, node=node, facts=facts)


def pace(before: Beat, after: Beat) -> Pace:
    """What a rank did between two beats of different steps."""
    steps, probes = after.step - before.step, after.probes - before.probes
    return Pace(
        step=(after.since - before.since) / steps,
        waited=(after.waited - before.waited) / steps,
        probe=(after.worked - before.worked) / probes if probes >= _FEWEST_PROBES else None,
    )


def slower(paces: Mapping[int, Pace]) -> dict[int, Slow]:
    """Rank → how much slower it is than the median of the others; only those that are."""
    found = {}
    for rank, mine in paces.items():
        others = [each for other, each in paces.items() if other != rank]
        late, device = _late(mine, others), _device(mine, others)
        if max(late, device) > 0:
            found[rank] = (
                Slow(late, f"the others wait for it {late:.0%} of each step")
                if late >= device
                else Slow(device, f"its device takes {device:.0%} longer for the same work")
            )
    return found


def _late(mine: Pace, others: Sequence[Pace]) -> float:
    """Share of a step for which the others wait longer than it does."""
    if not others or mine.step <= 0:
        return 0.0
    return (statistics.median(each.waited for each in others) - mine.waited) / mine.step


def _device(mine: Pace, others: Sequence[Pace]) -> float:
    """Share by which its device takes longer than the others' do."""
    known = [each.probe for each in others if each.probe is not None]
    if mine.probe is None or not known or (usual := statistics.median(known)) <= 0:
        return 0.0
    return mine.probe / usual - 1


def _is_window(before: Beat, after: Beat) -> bool:
    return after.since - before.since >= WINDOW_SECONDS and after.step - before.step >= WINDOW_STEPS
