"""Where a run stands, from its locks and events alone."""

from __future__ import annotations

from typing import Any, Literal

from record.events import ENDINGS, latest
from record.folder import RunFolder
from record.lock import is_held

State = Literal["new", "starting", "running", "finished", "stopped", "failed", "interrupted"]


def run_state(folder: RunFolder, events: list[dict[str, Any]]) -> State:
    """``interrupted``: it started, nobody works on it, and no ending was recorded (a kill, a power cut)."""
    if is_held(folder):
        return "running"
    if is_held(folder, "launch"):
        return "starting"
    last = latest(events, "start", *ENDINGS)
    if last is None:
        return "new"
    return "interrupted" if last["event"] == "start" else last["event"]
