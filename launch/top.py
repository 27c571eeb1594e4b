"""What `umbel top` shows: all runs, and one of them closely, read anew for each frame."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from base.errors import UmbelError
from launch.ended import who_failed
from launch.lag import Lag, lags
from launch.overview import ask_slurm, status_or_fault
from launch.screens.numbers import event_text
from launch.status import LIVE, RunStatus, fresh_reports
from record.events import latest, read_events
from record.folder import RunFolder
from record.heartbeats import NodeReport
from record.jsonl import tail_lines
from record.metrics import KEYS, lineage

if TYPE_CHECKING:
    from launch.slurm.standing import Standing

SLURM_SECONDS = 15.0
"""Between two questions to Slurm."""

REST_SECONDS = 10.0
"""Between two looks at runs on which nobody works."""

HISTORY = 1 << 18
"""Bytes of the metrics' end that are drawn."""

EVENTS = 40


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One node of the chosen run.

    Attributes:
        at: what its newest rank is at.
        lag: of its slowest rank, as a share of a step.
        memory: in use, as a share.
        temperature: of its hottest device, in °C.
        load: of its cores, as the kernel counts it.
        age: of its report, in seconds.
    """

    node: str
    ranks: int
    at: str
    lag: float
    memory: float | None
    temperature: float | None
    load: float | None
    age: float


@dataclass(frozen=True, kw_only=True)
class Told:
    """One event in words. ``time``: ISO; ``level``: note, alert or bad."""

    time: str
    text: str
    level: str


@dataclass(frozen=True, kw_only=True)
class Frame:
    """All that one picture shows. ``chosen``: the place in ``runs`` of the one that is shown closely."""

    runs: list[RunStatus]
    chosen: int = 0
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    step_seconds: float | None = None
    nodes: list[NodeRow] = field(default_factory=list)
    events: list[Told] = field(default_factory=list)


class Top:
    """Reads frames. Slurm is asked beside it, for it may take its time.

    Args:
        folders: the runs; None for all in runs/, those that come later included.
    """

    def __init__(self, folders: Sequence[RunFolder] | None = None) -> None:
        self._folders = folders
        self._chosen: RunFolder | None = None
        self._order: list[RunFolder] = []
        self._known: dict[RunFolder, tuple[float, RunStatus]] = {}
        self._standings: dict[RunFolder, Standing] = {}

    def ask_slurm_beside(self) -> None:
        """From now on keep asking Slurm, in a thread that ends with the process."""

        def ask() -> None:
            while True:
                self.ask_slurm()
                time.sleep(SLURM_SECONDS)

        threading.Thread(target=ask, name="slurm", daemon=True).start()

    def ask_slurm(self) -> None:
        self._standings = ask_slurm(self._listed())

    def choose(self, by: int) -> None:
        """Show the run that is so many places further down."""
        if self._order:
            now = self._order.index(self._chosen) if self._chosen in self._order else 0
            self._chosen = self._order[max(0, min(len(self._order) - 1, now + by))]

    def frame(self) -> Frame:
        """As it is now. A run keeps its place; those on which somebody works come first."""
        found = {folder: self._status(folder) for folder in self._listed()}
        self._order = sorted(found, key=lambda folder: (found[folder].state not in LIVE, folder.name))
        if not self._order:
            return Frame(runs=[])
        if self._chosen not in self._order:
            self._chosen = self._order[0]
        assert self._chosen is not None
        runs = [found[folder] for folder in self._order]
        chosen = self._order.index(self._chosen)
        try:
            return _closely(self._chosen, runs, chosen)
        except UmbelError:
            return Frame(runs=runs, chosen=chosen)

    def _listed(self) -> Sequence[RunFolder]:
        return RunFolder.all() if self._folders is None else self._folders

    def _status(self, folder: RunFolder) -> RunStatus:
        read, known = self._known.get(folder, (float("-inf"), None))
        if known is not None and known.state not in LIVE and time.monotonic() - read < REST_SECONDS:
            return known
        found = status_or_fault(folder, self._standings.get(folder))
        self._known[folder] = time.monotonic(), found
        return found


def _closely(folder: RunFolder, runs: list[RunStatus], chosen: int) -> Frame:
    events = read_events(folder)
    lines = lineage(tail_lines(folder.metrics, HISTORY, KEYS), events)
    status = runs[chosen]
    step_seconds = lines[-1].get("step_seconds") if lines else None
    reports = fresh_reports(folder, status.attempt or 0) if status.state in LIVE else []
    slow = lags(reports, latest(events, "start") or {})
    return Frame(
        runs=runs,
        chosen=chosen,
        losses=[line["loss"] for line in lines if line.get("loss") is not None],
        rates=[line["tokens_per_second"] for line in lines if line.get("tokens_per_second")],
        step_seconds=step_seconds,
        nodes=[_row(report, slow) for report in reports],
        events=[told for event in _without_echoes(events[-EVENTS:]) if (told := tell(event))],
    )


def _row(report: NodeReport, slow: dict[int, Lag]) -> NodeRow:
    facts, ranks = report.facts, [beat.rank for beat in report.beats]
    total, free = facts.get("memory"), facts.get("memory_available")
    hot = [device["temperature"] for device in facts.get("devices", ()) if "temperature" in device]
    last = max(report.beats, key=lambda beat: beat.since, default=None)
    return NodeRow(
        node=report.node,
        ranks=len(ranks),
        at="-" if last is None else f"{last.phase} {last.step}" if last.step else last.phase,
        lag=max((slow[rank].share for rank in ranks if rank in slow), default=0.0),
        memory=1 - free / total if total and free is not None else None,
        temperature=max(hot, default=None),
        load=facts.get("load"),
        age=time.time() - report.time,
    )


def _without_echoes(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of many ranks that fail together the launcher's verdict, or else the first."""
    kept: list[dict[str, Any]] = []
    for event in events:
        before = kept[-1] if kept else {}
        if event["event"] == "failed" == before.get("event") and not before.get("verdict"):
            if event.get("verdict"):
                kept[-1] = event
            continue
        kept.append(event)
    return kept


def tell(event: dict[str, Any]) -> Told | None:
    """An event as a line of its own; None for those that nobody waits for."""
    kind = event["event"]
    if kind == "alert":
        return None  # it tells of another event, which has a line
    if (text := event_text(event)) is None:
        text = _END_TEXTS[kind](event) if kind in _END_TEXTS else None
    level = "bad" if kind in ("failed", "gave up", "hang") else "alert" if kind in _ALERTS else "note"
    return None if text is None else Told(time=event["time"], text=text, level=level)


def _some(nodes: Sequence[str]) -> str:
    """``node1, node2``, or ``48 nodes, node1 first``."""
    return ", ".join(nodes) if len(nodes) <= _NAMED else f"{len(nodes)} nodes, {nodes[0]} first"


_NAMED = 8
_ALERTS = ("straggler", "spike", "disk", "silent", "blamed", "warning", "restart", "requeue")
_END_TEXTS = {
    "submitted": lambda event: f"submitted as job {event['job']}",
    "job": lambda event: f"starts on {_some(event.get('nodes', ()))}",
    "requeue": lambda event: f"requeued: {event['why']}",
    "finished": lambda event: f"finished at step {event['step']}",
    "stopped": lambda event: f"stopped at step {event['step']}: {event.get('reason')}",
    "failed": lambda event: f"failed: {': '.join(filter(None, (who_failed(event), event.get('error'))))}",
    "gave up": lambda event: f"gave up: {event['why']}",
    "rollback": lambda event: f"rolled back from step {event['from']} to {event['to']}",
}
