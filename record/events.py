"""What happened to a run: starts, phases, checkpoints, rollbacks, ends. One line each in ``events.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from record.folder import RunFolder
from record.jsonl import append_lines, read_lines

ENDINGS = ("stopped", "finished", "failed")
"""Events after which an attempt is over."""


def utc_now() -> str:
    """``2026-11-23T08:15:30.123+00:00``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def record_event(folder: RunFolder, event: str, **facts: Any) -> None:
    """Append ``{"event": event, "time": now, **facts}`` and wait until the disk has it."""
    append_lines(folder.events, [{"event": event, "time": utc_now(), **facts}], sync=True)


def read_events(folder: RunFolder) -> list[dict[str, Any]]:
    """All events, oldest first."""
    return read_lines(folder.events, ("event", "time"))


def next_attempt(folder: RunFolder) -> int:
    """1-based number of the attempt that starts now: the recorded starts, and one."""
    return 1 + len([event for event in read_events(folder) if event["event"] == "start"])


def since_start(events: Sequence[dict[str, Any]], phase: str | None = None) -> Sequence[dict[str, Any]]:
    """The newest job, start, rollback, or phase of that name, and what came after it; all events before any.

    A start that fails before its first step has a job or a phase alone.
    """
    starts = [
        number
        for number, event in enumerate(events)
        if event["event"] in ("job", "start", "rollback")
        or (event["event"] == "phase" and event["name"] == phase)
    ]
    return events[starts[-1] :] if starts else events


def goes_on_from(event: dict[str, Any]) -> int | None:
    """The step from which the run goes on after a start or a rollback; None for any other event."""
    key = {"start": "step", "rollback": "to"}.get(event["event"])
    return event.get(key) if key else None


def standing(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events without news of steps that a later start or rollback went back behind."""
    return list(_standing_newest_first(events))[::-1]


def latest(events: Sequence[dict[str, Any]], *names: str) -> dict[str, Any] | None:
    """The newest standing event that has one of these names."""
    return next((event for event in _standing_newest_first(events) if event["event"] in names), None)


def _standing_newest_first(events: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    limit = float("inf")
    for event in reversed(events):
        step = goes_on_from(event)
        if step is not None:
            limit = min(limit, step)
        elif event.get("step", 0) > limit:
            continue
        yield event
