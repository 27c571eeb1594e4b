"""Where a run stands, from its locks and events alone."""

from __future__ import annotations

from typing import Any, Literal

from record.events import latest
from record.folder import RunFolder
from record.lock import is_held

State = Literal[
    "new",
    "queued",
    "requeued",
    "starting",
    "running",
    "finished",
    "stopped",
    "failed",
    "interrupted",
    "rolled back",
]

WORKING = ("starting", "running")
"""States in which somebody works on the run."""

WAITING = ("queued", "requeued")
"""States in which a job of the run waits for its turn, as far as the run's own records tell."""

_STATES: dict[str, State] = {
    "submitted": "queued",
    "requeue": "requeued",
    "job": "interrupted",
    "start": "interrupted",
    "rollback": "rolled back",
    "gave up": "failed",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "failed",
}
"""What an event leaves a run in on which nobody works."""


def run_state(folder: RunFolder, events: list[dict[str, Any]]) -> State:
    """``interrupted``: it started, nobody works on it, and no ending was recorded (a kill, a power cut).
    ``rolled back``: to an earlier checkpoint, from which it has not been started yet."""
    if is_held(folder):
        return "running"
    if is_held(folder, "launch"):
        return "starting"
    last = latest(events, *_STATES)
    return _STATES[last["event"]] if last else "new"
