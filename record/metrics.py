"""Metrics of each step, and how a reader sees every step once however often the run was killed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from record.events import goes_on_from, read_events, utc_now
from record.folder import RunFolder
from record.jsonl import append_lines, read_lines

Line = dict[str, Any]
KEYS = ("step", "attempt")
"""What every line of metrics holds."""


class MetricsWriter:
    """Appends the lines of one attempt to ``metrics.jsonl``.

    Write before the checkpoint that covers the steps: what a later attempt skips must be on disk.
    """

    def __init__(self, folder: RunFolder, attempt: int) -> None:
        self.folder, self.attempt = folder, attempt

    def write(self, lines: list[Line]) -> None:
        """Append step lines, all or none; each gets ``attempt`` and, where it has none, ``time``."""
        now = utc_now()
        stamped = [{"time": now, **line, "attempt": self.attempt} for line in lines]
        append_lines(self.folder.metrics, stamped, sync=True)


def read_metrics(folder: RunFolder) -> list[Line]:
    """What a reader shows: each step once, in order.

    An attempt that resumed after step s repeats what earlier attempts did beyond s, and a rollback to s gives
    it up: their lines with step > s do not count. Where two attempts tell the same step, the newer one does.
    """
    return lineage(read_lines(folder.metrics, KEYS), read_events(folder))


def lineage(lines: Iterable[Line], events: Sequence[Line]) -> list[Line]:
    """The lines that are part of the run as it stands, sorted by step."""
    valid_up_to = _valid_up_to(events)
    shown: dict[int, Line] = {}
    for line in lines:
        step, attempt = line["step"], line["attempt"]
        if step > valid_up_to.get(attempt, float("inf")):
            continue
        if step not in shown or attempt >= shown[step]["attempt"]:
            shown[step] = line
    return [shown[step] for step in sorted(shown)]


def _valid_up_to(events: Sequence[Line]) -> dict[int, float]:
    """Attempt → the last of its steps that no later start or rollback went back behind."""
    limits: dict[int, float] = {}
    limit = float("inf")
    for event in reversed(events):
        if event["event"] == "start":
            limits[event["attempt"]] = limit
        step = goes_on_from(event)
        limit = limit if step is None else min(limit, step)
    return limits
