"""A run that gets on no more: found by what is usual for it, and named by the stacks of all its ranks."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from base.errors import UmbelError
from configs.schema import Supervision
from launch.supervise.detect.odd import Seen, describe, odd_ones
from launch.supervise.detect.progress import Progress
from launch.supervise.detect.reports import Reports, beats, nodes_of
from launch.supervise.finding import Finding
from launch.supervise.stacks import GONE, answered, how, read_stacks, request_stacks, stacks_folder
from record.folder import RunFolder
from record.heartbeats import NodeReport
from record.jsonl import tail_lines

ANSWER_SECONDS = 20.0
"""How long the nodes may take over the stacks of a run that hangs."""

FRAMES = 40
"""Calls of an odd rank's stack that the event holds."""


@dataclass(frozen=True)
class _Asked:
    """Stacks that were asked for, ``since`` so many seconds of watching."""

    place: Path
    since: float


class HangDetector:
    """Says once that a run hangs, and once of each node that has fallen silent."""

    def __init__(
        self,
        folder: RunFolder,
        settings: Supervision,
        attempt: int,
        nodes: Sequence[str],
        reports: Reports,
    ) -> None:
        self.folder, self.attempt, self.nodes, self.reports = folder, attempt, nodes, reports
        self.progress = Progress(settings, nodes)
        self._asked: _Asked | None = None
        self._over = False
        self._silent: set[str] = set()

    def look(self, now: float) -> Sequence[Finding]:
        """Never waits: stacks are asked for at one look, and read at a later one."""
        reports, progress = self.reports.newest(now), self.progress
        progress.observe(now, reports, _size(self.folder.metrics))
        if (
            progress.usual("step") is None
        ):  # none was seen to end yet: earlier attempts, or this one's first lines
            progress.usual_step = usual_step(self.folder)
        return [*self._newly_silent(), *self._hang(reports)]

    def _hang(self, reports: list[NodeReport]) -> list[Finding]:
        progress = self.progress
        if self._over or not progress.overdue:
            self._asked = None  # it went on after all
            return []
        if self._asked is None:
            self._asked = _Asked(self._ask(), progress.watched)
        asked, silent = self._asked, progress.silent()
        speaking = [report.node for report in reports if report.node not in silent]
        if not answered(asked.place, speaking) and progress.watched - asked.since < ANSWER_SECONDS:
            return []
        self._over = True
        return [self._finding(asked, reports, silent)]

    def _ask(self) -> Path:
        """Where the stacks will lie; where nothing can be asked for (a full disk), nothing will."""
        number = 0
        with contextlib.suppress(OSError):
            number = request_stacks(self.folder, self.attempt)
        return stacks_folder(self.folder, self.attempt, number)

    def _finding(self, asked: _Asked, reports: list[NodeReport], silent: Sequence[str]) -> Finding:
        ranks = seen_ranks(reports, silent, asked.place)
        odd = odd_ones(ranks) if len(ranks) > 1 else ranks
        named = sorted({seen.node for seen in odd})
        first = next(iter(odd or ranks), None)
        text = describe(ranks, odd, self.progress.quiet) if ranks else "no rank has ever reported"
        if not self.progress.stepped:
            text = f"no step in the {self.progress.watched / 60:.0f} minutes since the start: {text}"
        facts = {
            "seconds": round(self.progress.quiet, 1),
            "limit": round(self.progress.limit, 1),
            "phase": first.beat.phase if first else None,
            "step": max((seen.beat.step for seen in ranks), default=0),
            "ranks": [seen.rank for seen in odd],
            "nodes": named,
            "stack": [f"{frame} {frame.function}" for frame in first.stack[:FRAMES]] if first else [],
            "stacks": str(asked.place.relative_to(self.folder.path)),
            **({"rank": odd[0].rank} if odd else {}),
        }
        node = named[0] if len(named) == 1 else None
        return Finding(kind="hang", text=f"hang: {text}", fatal=True, node=node, facts=facts)

    def _newly_silent(self) -> list[Finding]:
        silent = set(self.progress.silent())
        new, self._silent = sorted(silent - self._silent), silent
        return [
            Finding(kind="silent", text=f"nothing is heard of {node}: its watcher does not report", node=node)
            for node in new
        ]


def seen_ranks(reports: Sequence[NodeReport], silent: Sequence[str], place: Path) -> list[Seen]:
    """Every rank of which anything is known, with the stack that lies in ``place``."""
    stacks, why, where = read_stacks(place), how(place), nodes_of(list(reports))
    gone = {rank for report in reports for rank in report.facts.get("gone", ())}
    found = []
    for rank, beat in sorted(beats(list(reports)).items()):
        stack, reason = stacks.get(rank, ()), why.get(rank, "could not be looked at")
        if where[rank] in silent:
            stack, reason = (), "its node is silent"
        elif rank in gone:
            stack, reason = (), GONE
        found.append(Seen(rank=rank, node=where[rank], beat=beat, stack=stack, why=reason))
    return found


def usual_step(folder: RunFolder) -> float | None:
    """Seconds that a step took, by the newest lines of the metrics, whichever attempt wrote them."""
    with contextlib.suppress(UmbelError):
        lines = tail_lines(folder.metrics)
        seconds = [line["step_seconds"] for line in lines if line.get("step_seconds")]
        return statistics.median(seconds) if seconds else None
    return None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
