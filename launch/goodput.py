"""Where a run's time went: useful steps, and what was lost to each cause. A pure function of its records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from record.metrics import lineage

Record = dict[str, Any]

QUEUEING, STARTING, WORKING, DOWN, PAUSED = "queueing", "starting", "working", "down", "paused"
"""What a run is at between two records."""

LOST = (QUEUEING, STARTING, "repeated", "saving", "evaluating", "hang", DOWN, PAUSED, "other")
"""Causes. ``repeated``: steps whose work was lost and done again, or given up; ``saving``: steps held by a
save; ``evaluating``: samples, too; ``down``: from the end of an attempt to the next start; ``paused``: the
same after an end that somebody asked for, until somebody starts the run again."""

_TAIL = {"finished": "saving", "stopped": "saving", "failed": "repeated", "hang": "hang"}
"""Events that end an attempt, and what the time since its last told step mostly was."""


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Seconds since the first submission. ``useful`` and ``lost``, by cause, add up to ``seconds``.

    Attributes:
        share: of the time that went into useful steps.
        step_share: of the executed steps that are part of the run as it stands.
    """

    seconds: float
    useful: float
    lost: dict[str, float]
    useful_steps: int
    executed_steps: int
    share: float
    step_share: float


def goodput(events: Sequence[Record], lines: Sequence[Record], now: float | None = None) -> Goodput:
    """What a run's time went into.

    Args:
        events: all of events.jsonl, oldest first.
        lines: all of metrics.jsonl, those of repeated steps included.
        now: Unix time up to which to count, while somebody works on the run or a job of it waits; None
            counts up to the last record.
    """
    sweep = _Sweep(events, lines)
    # At equal times steps come first: an end is told after its last step.
    records: list[tuple[float, Record | list[Record]]] = [*_flushes(lines)]
    records += [(unix(event["time"]), event) for event in events]
    for time, record in sorted(records, key=lambda each: each[0]):
        if isinstance(record, list):
            sweep.steps(time, record)
        else:
            sweep.event(time, record)
    sweep.finish(now)
    useful = sweep.spent.pop("useful")
    seconds = useful + sum(sweep.spent.values())
    kept, executed = len(sweep.kept), sum("time" in line for line in lines)
    return Goodput(
        seconds=seconds,
        useful=useful,
        lost=sweep.spent,
        useful_steps=kept,
        executed_steps=executed,
        share=useful / seconds if seconds else 0.0,
        step_share=kept / executed if executed else 0.0,
    )


def unix(time: str) -> float:
    """Of an ISO time with its zone."""
    return datetime.fromisoformat(time).timestamp()


def _flushes(lines: Iterable[Record]) -> list[tuple[float, list[Record]]]:
    """Lines that were written together, with the time at which they were."""
    timed = (line for line in lines if "time" in line)
    groups = [list(group) for _, group in groupby(timed, key=lambda line: (line["attempt"], line["time"]))]
    return [(unix(group[0]["time"]), group) for group in groups]


def _blocked(events: Iterable[Record]) -> dict[tuple[int, int], float]:
    """(attempt, step) of each save to the seconds for which it held the steps."""
    attempt, found = 0, dict[tuple[int, int], float]()
    for event in events:
        attempt = event.get("attempt", attempt) if event["event"] == "start" else attempt
        if event["event"] == "checkpoint":
            found[attempt, event["step"]] = float(event.get("blocked") or 0.0)
    return found


class _Sweep:
    """Goes through the records by time. Each second is put down to one cause, once."""

    def __init__(self, events: Sequence[Record], lines: Sequence[Record]) -> None:
        self.spent = dict.fromkeys(("useful", *LOST), 0.0)
        self.kept = {(line["attempt"], line["step"]) for line in lineage(lines, events) if "time" in line}
        self._blocked = _blocked(events)
        self._held = 0.0  # what is left of a save's hold on the steps
        self._at: float | None = None
        self._seen = 0.0  # the last sign of life
        self._mode, self._has_job = DOWN, False
        self._last: tuple[int, int] | None = None

    def event(self, time: float, event: Record) -> None:
        name, by_hand = event["event"], _is_by_hand(event)
        if name in _TAIL:
            self._take(time, _tail(event) if self._mode == WORKING else self._mode)
            if self._mode not in (DOWN, PAUSED):
                self._mode = PAUSED if name in ("finished", "stopped") else DOWN
        elif name in ("evaluation", "sample") and self._mode == WORKING:
            self._take(time, "evaluating")
        elif name in ("submitted", "requeue"):
            self._close(time, by_hand)
            self._mode = QUEUEING
        elif name in ("restart", "gave up"):
            self._close(time, by_hand)
            self._mode = DOWN
        elif name in ("job", "start", "phase"):
            self._close(time, by_hand, new=by_hand or name == "job")
            self._mode, self._has_job = STARTING, self._has_job or name != "phase"
        self._seen = max(self._seen, time)

    def steps(self, time: float, lines: Sequence[Record]) -> None:
        """Lines that were written together, at the end of the last one's step."""
        length = sum(line.get("step_seconds") or 0.0 for line in lines)
        began = time - length if length else self._at
        if began is not None:
            self._pause(began)
        self._hold(time)
        kept = sum((line["attempt"], line["step"]) in self.kept for line in lines) / len(lines)
        self._take(time, "useful", kept)
        self._mode, self._last = WORKING, (lines[-1]["attempt"], lines[-1]["step"])
        self._seen = max(self._seen, time)

    def finish(self, now: float | None) -> None:
        """Up to ``now``; steps that are not told yet are not counted."""
        if now is not None:
            if self._mode != WORKING:
                self._take(now, self._mode)
        elif self._mode == WORKING:
            self._take(self._seen, "repeated")
        else:
            self._take(self._seen, self._mode)

    def _close(self, time: float, by_hand: bool, new: bool = True) -> None:
        """What went before is over, perhaps without a word: a kill -9 leaves none."""
        if self._mode == WORKING:
            self._take(self._seen, "repeated")
            self._take(time, DOWN)
        elif self._mode == STARTING and self._has_job and new:
            self._take(self._seen, STARTING)
            self._take(time, DOWN)
        else:
            self._take(time, DOWN if self._mode == PAUSED and not by_hand else self._mode)
        if new:
            self._has_job, self._held = False, 0.0

    def _pause(self, began: float) -> None:
        """Between two steps, or before the first."""
        if self._mode != WORKING:
            self._take(began, self._mode)
            return
        self._held += self._blocked.pop(self._last, 0.0) if self._last else 0.0
        self._hold(began)
        self._take(began, "other")

    def _hold(self, until: float) -> None:
        """A save holds the steps at once, and once more where the next update waits for its copy."""
        if self._at is not None and self._held > 0:
            held = min(self._held, max(0.0, until - self._at))
            self._held -= held
            self._take(self._at + held, "saving")

    def _take(self, until: float, cause: str, useful: float = 1.0) -> None:
        """Put the time up to ``until`` down to a cause; the rest of ``useful`` steps was done in vain."""
        seconds = 0.0 if self._at is None else max(0.0, until - self._at)
        self.spent[cause] += seconds * useful
        self.spent["repeated"] += seconds * (1 - useful)
        self._at = until if self._at is None else max(self._at, until)


def _tail(event: Record) -> str:
    """What the time was since the last told step of an attempt that ended so."""
    unsaved = str(event.get("reason", "")).startswith("umbel cancel")
    return "repeated" if unsaved else _TAIL[event["event"]]


def _is_by_hand(event: Record) -> bool:
    """Whether somebody typed a command: the launcher's phases have no attempt."""
    return event["event"] == "submitted" or (event["event"] == "phase" and "attempt" not in event)
