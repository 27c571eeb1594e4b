"""Where a run stands: one set of plain facts for the progress line, the table and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from base.errors import UmbelError
from configs.compose import load
from record.events import goes_on_from, latest, read_events, since_start
from record.folder import RunFolder
from record.jsonl import tail_lines
from record.metrics import KEYS, lineage
from record.state import run_state


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Facts that are not known are None. Times in seconds, rates per second."""

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
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None
    rolled_back_from: int | None = None
    error: str | None = None


def status_of(folder: RunFolder, steps: int | None = None) -> RunStatus:
    """Read the end of the metrics and the events. ``steps`` saves reading ``run.yaml`` again."""
    events = read_events(folder)
    total = steps if steps is not None else load(folder.run_yaml).schedule.steps
    state = run_state(folder, events)
    start, checkpoint = latest(events, "start") or {}, latest(events, "checkpoint") or {}
    origin = latest(events, "start", "rollback")
    lines = lineage(tail_lines(folder.metrics, keys=KEYS), events)
    last = lines[-1] if lines else {}
    begun = (origin and goes_on_from(origin)) or 0
    step = max(begun, checkpoint.get("step", 0), last.get("step", 0))
    pace = _seconds_per_step(lines) if state == "running" else None
    phase = latest(events, "phase") if state in ("starting", "running") else None
    return RunStatus(
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
    )


def status_or_fault(folder: RunFolder) -> RunStatus:
    """The same for a list of runs: one whose files cannot be read does not hide the others."""
    try:
        return status_of(folder)
    except UmbelError as error:
        return RunStatus(name=folder.name, state="unreadable", step=0, steps=0, error=str(error))


def age(time: str) -> float:
    """Seconds since an ISO time with its zone."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()


def _cause(events: list[dict[str, Any]]) -> str | None:
    """Why the newest attempt failed: the launcher's verdict, else what failed first.

    What fails later are mostly processes that lost the first one.
    """
    failed = [event for event in since_start(events, "starting workers") if event["event"] == "failed"]
    verdicts = [event for event in failed if event.get("verdict")]
    return next((event.get("error") for event in verdicts[-1:] + failed), None)


def _seconds_per_step(lines: list[dict[str, Any]]) -> float | None:
    """Pace over the present attempt's last lines; lines written together share a time and tell nothing."""
    mine = [line for line in lines if line["attempt"] == lines[-1]["attempt"]]
    for first in mine:
        if first["time"] != mine[-1]["time"]:
            elapsed = age(first["time"]) - age(mine[-1]["time"])
            return elapsed / int(mine[-1]["step"] - first["step"])
    return None
