"""When did a run last get on, and how long may it take: a pure function of what was seen, and when."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

from configs.schema import Supervision
from record.heartbeats import Beat, NodeReport

LONGEST_LOOK = 5.0
"""Seconds between two looks that count: where the watching process itself stood still, it saw nothing."""

SILENT_SECONDS = 60.0
"""After which a node that does not report any more is called silent; one that never did, later."""

SILENT_AT_START = 300.0

_KEPT = 50


class Progress:
    """Watches the ranks' beats and the nodes' reports.

    A run's processes wait for each other: as long as one of them begins something new, all get on; and where
    one is at something that may last, the others may wait as long. Times are of the watching process alone:
    no clock of a node is compared with another's.

    Args:
        nodes: the nodes that are to report.

    Attributes:
        usual_step: seconds that a step takes as far as others know, where none was seen here.
        stepped: whether a step has ended.
    """

    def __init__(self, settings: Supervision, nodes: Sequence[str] = ()) -> None:
        self.settings = settings
        self.seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self.usual_step: float | None = None
        self.stepped = False
        self._beats: dict[int, Beat] = {}
        self._first_steps: dict[int, int] = {}
        self._reports: dict[str, tuple[float, float] | None] = dict.fromkeys(nodes)
        self._clock = self._changed = 0.0
        self._now: float | None = None
        self._written: int | None = None

    def observe(self, now: float, reports: Iterable[NodeReport], written: int = 0) -> None:
        """Take in the newest reports; ``written`` grows with every line of the run's metrics."""
        if self._now is not None:
            self._clock += min(max(0.0, now - self._now), LONGEST_LOOK)
        self._now = now
        for report in reports:
            heard = self._reports.get(report.node)
            if heard is None or heard[0] != report.time:
                self._reports[report.node] = report.time, self._clock
            for beat in report.beats:
                self._hear(beat)
        if self._written is not None and written > self._written:
            self.stepped, self._changed = True, self._clock
        self._written = written

    @property
    def quiet(self) -> float:
        """Seconds for which nothing new has begun."""
        return self._clock - self._changed

    @property
    def limit(self) -> float:
        """Seconds after which quiet is no longer usual for what the ranks are at."""
        start = 60 * self.settings.start_minutes
        phases = {beat.phase for beat in self._beats.values()}
        if len(self.silent()) == len(self._reports):
            return max(start, self.settings.hang_seconds)  # nothing is known but that no line was written
        return max((self._limit(phase, start) for phase in phases), default=start)

    @property
    def overdue(self) -> bool:
        """Whether the run hangs: before its first step by the time since its start, then by quiet."""
        if not self.stepped:
            return self._clock > 60 * self.settings.start_minutes
        return self.quiet > self.limit

    @property
    def watched(self) -> float:
        """Seconds since the first look."""
        return self._clock

    def silent(self) -> list[str]:
        """Nodes that have not reported for a while."""
        return [node for node, heard in self._reports.items() if self._is_silent(heard)]

    def _is_silent(self, heard: tuple[float, float] | None) -> bool:
        if heard is None:
            return self._clock > SILENT_AT_START
        return self._clock - heard[1] > SILENT_SECONDS

    def _hear(self, beat: Beat) -> None:
        before = self._beats.get(beat.rank)
        if before is not None and before.pid == beat.pid and before[2:5] == beat[2:5]:
            return
        self._beats[beat.rank], self._changed = beat, self._clock
        if beat.step:
            self.stepped = self.stepped or beat.step > self._first_steps.setdefault(beat.rank, beat.step)
        if before is not None and before.pid == beat.pid:
            self._learn(before, beat)

    def _learn(self, before: Beat, after: Beat) -> None:
        steps, seconds = after.step - before.step, after.since - before.since
        if seconds > 0:
            # What follows at the same step's number, a save say, ends a step; else some have passed unseen.
            self.seconds[before.phase].append(seconds / max(1, steps) if before.phase == "step" else seconds)

    def _limit(self, phase: str, unknown: float) -> float:
        usual = self.usual(phase)
        seconds = unknown if usual is None else self.settings.hang_factor * usual
        return max(self.settings.hang_seconds, seconds)

    def usual(self, phase: str) -> float | None:
        """Median of what it took so far; None where nothing tells."""
        seen = self.seconds.get(phase)
        if seen:
            return statistics.median(seen)
        return self.usual_step if phase == "step" else None
