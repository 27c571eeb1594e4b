"""Where a run stands, from its locks and events alone."""

from __future__ import annotations

from typing import Any, Literal

from record.events import ENDINGS, latest
from record.folder import RunFolder
from record.lock import is_held

State = Literal["new", "starting", "running", "finished", "stopped", "failed", "interrupted", "rolled back"]


def run_state(folder: RunFolder, events: list[dict[str, Any]]) -> State:
    """``interrupted``: it started, nobody works on it, and no ending was recorded (a kill, a power cut).
    ``rolled back``: to an earlier checkpoint, from which it has not been started yet."""
    if is_held(folder):
        return "running"
    if is_held(folder, "launch"):
        return "starting"
    last = latest(events, "start", "rollback", *ENDINGS)
    if last is None:
        return "new"
    states: dict[str, State] = {"start": "interrupted", "rollback": "rolled back"}
    return states.get(last["event"], last["event"])
