"""What went wrong in an attempt, the first fault first: who, what, and the last that it printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.ended import who_failed
from launch.logs import log_of, newest_attempt, tail
from record.events import read_events
from record.folder import RunFolder

LINES, LINES_OF_OTHERS = 20, 3
"""Of a rank's log that are shown with the first fault, and with the others: mostly they lost that rank."""

_FAULTS = ("failed", "hang", "gave up")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: a line that tells it, and the words that were printed with it."""

    text: str
    words: list[str]


def faults(folder: RunFolder, attempt: int | None = None) -> list[Fault]:
    """Those of an attempt, or of the newest that had any; what was told first is first.

    A launcher's verdict stands before what its workers said: it saw which process ended first.
    """
    numbered = _by_attempt(read_events(folder))
    number = attempt or max((each for each, _ in numbered), default=newest_attempt(folder))
    told = [event for each, event in numbered if each == number]
    told.sort(key=lambda event: not event.get("verdict"))
    named: set[tuple[Any, Any]] = set()
    found: list[Fault] = []
    for event in told:
        mark = event.get("rank"), event.get("error") or event.get("text") or event.get("why")
        if mark not in named:
            named.add(mark)
            lines = LINES_OF_OTHERS if found else LINES
            found.append(Fault(text=_text(event, number), words=_words(folder, event, number, lines)))
    return found


def _by_attempt(events: Sequence[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Every fault with its attempt's number; one before the start stands is that of the start to come."""
    started, found = 0, []
    begun = False
    for event in events:
        if event["event"] == "start":
            started, begun = event["attempt"], True
        elif event["event"] == "job":
            begun = False
        elif event["event"] in _FAULTS:
            found.append((started if begun or event["event"] == "gave up" else started + 1, event))
    return found


def _text(event: dict[str, Any], attempt: int) -> str:
    if event["event"] == "hang":
        return f"attempt {attempt}: {event['text']}"
    if event["event"] == "gave up":
        return f"gave up: {event['why']}"
    return ": ".join(filter(None, (f"attempt {attempt}", who_failed(event), event.get("error"))))


def _words(folder: RunFolder, event: dict[str, Any], attempt: int, lines: int) -> list[str]:
    """What an event brings along, else the end of the rank's log."""
    if event["event"] == "hang":
        return [f"  {frame}" for frame in event.get("stack", ())]
    if event.get("words"):
        return str(event["words"]).splitlines()
    log = None if event.get("rank") is None else log_of(folder, event["rank"], attempt)
    return tail(log, lines) if log else []
