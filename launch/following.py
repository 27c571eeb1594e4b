"""Whether more is to come of a run: while somebody works on it, or a job of it waits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from base.errors import UmbelError
from record.events import read_events
from record.folder import RunFolder
from record.state import WAITING, WORKING, run_state

if TYPE_CHECKING:
    from launch.slurm.standing import Standing

ASK_SECONDS = 15.0
"""Between two questions to Slurm, which has others to answer."""

_TELL = {
    "restart": "the workers are started again ({why})",
    "requeue": "requeued ({why}): waits for its turn",
    "job": "starts on {where}",
}


class Following:
    """Call it again and again; tells, by ``say``, what stands between two attempts."""

    def __init__(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self._told = len(read_events(folder))
        self._asked = float("-inf")
        self._standing: Standing | None = None

    def __call__(self) -> bool:
        events = read_events(self.folder)
        for event in events[self._told :]:
            if event["event"] in _TELL:
                where = ", ".join(event.get("nodes", ()))
                self.say(f"{self.folder.name}: {_TELL[event['event']].format(**{**event, 'where': where})}")
        self._told = len(events)
        state = run_state(self.folder, events)
        return state in WORKING or self._by_slurm(events, unknown=state in WAITING)

    def _by_slurm(self, events: Sequence[dict[str, Any]], unknown: bool) -> bool:
        """Locks may not reach from node to node; Slurm knows. ``unknown``: what holds without one."""
        if time.monotonic() - self._asked > ASK_SECONDS:
            self._asked, self._standing = time.monotonic(), self._ask(events)
        if self._standing is None:
            return unknown
        return self._standing.works or self._standing.waits

    def _ask(self, events: Sequence[dict[str, Any]]) -> Standing | None:
        from launch.slurm.standing import standings

        with contextlib.suppress(UmbelError):
            return standings({self.folder: events}).get(self.folder)
        return None
