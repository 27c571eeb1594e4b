"""What happened to a run: starts, phases, checkpoints, ends. One line each in ``events.jsonl``."""

from __future__ import annotations

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


def since_start(events: list[dict[str, Any]], phase: str | None = None) -> list[dict[str, Any]]:
    """The newest ``start``, or phase of that name, and what came after it; all events before any.

    A start that fails before its first step has a phase alone.
    """
    starts = [
        number
        for number, event in enumerate(events)
        if event["event"] == "start" or (event["event"] == "phase" and event["name"] == phase)
    ]
    return events[starts[-1] :] if starts else events


def latest(events: list[dict[str, Any]], *names: str) -> dict[str, Any] | None:
    """The newest event that has one of these names."""
    return next((event for event in reversed(events) if event["event"] in names), None)
