"""Where a run stands: one set of plain facts for the progress line, the table, the card and JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from configs.compose import load
from launch.ended import how_it_ended
from launch.goodput import Goodput
from launch.lag import Lag, lags, slowest
from launch.screens.numbers import FINDINGS
from record.control import stop_reason
from record.events import goes_on_from, latest, read_events, since_start
from record.folder import RunFolder
from record.heartbeats import NodeReport, read_reports
from record.jsonl import tail_lines
from record.metrics import KEYS, lineage
from record.state import WAITING, WORKING, run_state

if TYPE_CHECKING:
    from launch.slurm.standing import Standing

Event = dict[str, Any]

STALE_SECONDS = 60.0
"""A node's report that is older tells nothing of now."""

_BEGINS = ("submitted", "job", "start", "requeue")

LIVE = (*WORKING, *WAITING)
"""States of a run of which more is to come."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Facts that are not known are None. Times in seconds, rates per second.

    Attributes:
        ended: how the last attempt that is over ended, in words.
        asked_to_stop: by what, while the workers have not followed yet.
        job, waiting_for, queue_position, expected_start: of Slurm's job; ``expected_start`` from now.
        walltime_left: until the job's time limit.
        slowest: the rank that the others wait for.
        goodput: where the time went; only where it was asked for.
        alerts: what was found wrong with the newest attempt, in words.
    """

    name: str
    state: str
    step: int
    steps: int
    loss: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    eta: float | None = None
    phase: str | None = None
    attempt: int | None = None
    world_size: int | None = None
    zero_stage: int | None = None
    nodes: int | None = None
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None
    rolled_back_from: int | None = None
    error: str | None = None
    ended: str | None = None
    asked_to_stop: str | None = None
    job: str | None = None
    waiting_for: str | None = None
    queue_position: int | None = None
    expected_start: float | None = None
    walltime_left: float | None = None
    slowest: Lag | None = None
    goodput: Goodput | None = None
    alerts: list[str] = field(default_factory=list)


def status_of(folder: RunFolder, steps: int | None = None, standing: Standing | None = None) -> RunStatus:
    """Read the end of the metrics and the events.

    Args:
        steps: saves reading ``run.yaml`` again.
        standing: what Slurm says of its jobs (`launch.overview` asks); without, its own records tell.
    """
    events = read_events(folder)
    total = steps if steps is not None else load(folder.run_yaml).schedule.steps
    state = _state(run_state(folder, events), events, standing)
    start, checkpoint = latest(events, "start") or {}, latest(events, "checkpoint") or {}
    origin = latest(events, "start", "rollback")
    lines = lineage(tail_lines(folder.metrics, keys=KEYS), events)
    last = lines[-1] if lines else {}
    begun = (origin and goes_on_from(origin)) or 0
    step = max(begun, checkpoint.get("step", 0), last.get("step", 0))
    pace = _seconds_per_step(lines) if state == "running" else None
    phase = latest(events, "phase") if state in WORKING else None
    found = RunStatus(
        name=folder.name,
        state=state,
        step=step,
        steps=total,
        loss=last.get("loss"),
        tokens=last.get("tokens"),
        tokens_per_second=last.get("tokens_per_second"),
        mfu=last.get("mfu"),
        eta=pace * (total - step) if pace is not None else None,
        phase=phase["name"] if phase and phase["time"] > last.get("time", "") else None,
        attempt=start.get("attempt"),
        world_size=start.get("world_size"),
        zero_stage=start.get("zero_stage"),
        checkpoint_step=checkpoint.get("step"),
        checkpoint_age=age(checkpoint["time"]) if checkpoint else None,
        rolled_back_from=origin["from"] if origin and state == "rolled back" else None,
        error=_cause(events) if state == "failed" else None,
        ended=how_it_ended(events, standing.ended if standing else None, state in LIVE),
        alerts=[event["text"] for event in since_start(events) if event["event"] in FINDINGS],
    )
    return _with_machines(found, folder, events, standing)


def age(time: str) -> float:
    """Seconds since an ISO time with its zone."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


def _state(recorded: str, events: Sequence[Event], standing: Standing | None) -> str:
    """By the records, and by Slurm where it knows better: locks may not reach from node to node."""
    if standing is None or recorded in WORKING:
        return recorded
    newest = next((event["event"] for event in reversed(events) if event["event"] in _BEGINS), None)
    if standing.works and not standing.ends:
        return "running" if newest == "start" else "starting"
    if standing.waits:
        return "queued" if newest == "submitted" else "requeued"
    if recorded in WAITING and not standing.works:
        return "stopped" if standing.cancelled else "interrupted"
    return recorded


def _with_machines(
    found: RunStatus,
    folder: RunFolder,
    events: Sequence[Event],
    standing: Standing | None,
) -> RunStatus:
    """With what is known of the job and the nodes of a run that works or waits."""
    if found.state not in LIVE:
        return found
    job = latest(events, "job", "submitted") or {}
    number = standing.job if standing else job.get("id", job.get("job"))
    if found.state in WAITING:
        if standing is None:
            return replace(found, job=number)
        return replace(
            found,
            job=number,
            nodes=standing.nodes,
            waiting_for=standing.reason,
            queue_position=standing.position,
            expected_start=standing.expected_start and standing.expected_start - time.time(),
        )
    deadline = (standing and standing.deadline) or job.get("deadline")
    reports = fresh_reports(folder, found.attempt or 0)
    return replace(
        found,
        job=number,
        nodes=len(job.get("nodes", ())) or (standing.nodes if standing else None),
        walltime_left=None if deadline is None else deadline - time.time(),
        slowest=slowest(lags(reports, latest(events, "start") or {})),
        asked_to_stop=stop_reason(folder),
    )


def fresh_reports(folder: RunFolder, attempt: int) -> list[NodeReport]:
    """What the nodes of an attempt say of now."""
    return [report for report in read_reports(folder, attempt) if time.time() - report.time < STALE_SECONDS]


def _cause(events: Sequence[Event]) -> str | None:
    """Why the newest attempt failed: the launcher's verdict, else what failed first.

    What fails later are mostly processes that lost the first one.
    """
    failed = [event for event in since_start(events, "starting workers") if event["event"] == "failed"]
    verdicts = [event for event in failed if event.get("verdict")]
    return next((event.get("error") for event in verdicts[-1:] + failed), None)


def _seconds_per_step(lines: Sequence[Event]) -> float | None:
    """Pace over the present attempt's last lines; lines written together share a time and tell nothing."""
    mine = [line for line in lines if line["attempt"] == lines[-1]["attempt"]]
    for first in mine:
        if first["time"] != mine[-1]["time"]:
            elapsed = age(first["time"]) - age(mine[-1]["time"])
            return elapsed / int(mine[-1]["step"] - first["step"])
    return None
