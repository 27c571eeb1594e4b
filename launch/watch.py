"""Standing by a run in the foreground: progress, Ctrl-C, and what became of it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from base.errors import RunFailed
from launch import processes
from launch.interrupts import Interrupts
from launch.processes import adopt_orphans, end
from launch.progress import Progress, progress
from launch.screens.console import err, say
from launch.screens.numbers import event_text
from launch.status import status_of
from launch.supervise.marks import Marks
from record.control import request_stop
from record.events import ENDINGS, latest

POLL_SECONDS = 0.25


class Watch:
    """One launch of a run, seen from outside.

    Args:
        steps: of the whole run.
        marks: where the run's records stood before it.
    """

    def __init__(self, steps: int, marks: Marks) -> None:
        self.folder, self.steps, self.marks = marks.folder, steps, marks

    def follow(self, process: subprocess.Popen[bytes]) -> int:
        """Show progress until the run's supervisor ends; returns the exit code.

        The first Ctrl-C or SIGTERM asks for a collective save, the second kills.

        Raises:
            RunFailed: the run failed; tells the first failing rank's own words.
        """
        adopt_orphans()
        with Interrupts() as interrupts, progress(err) as shown:
            self._stand_by(process, interrupts, shown)
        _end_orphans(process)
        if len(interrupts.received) > 1:
            say(f"killed; umbel resume {self.folder.handle} goes on from the newest checkpoint")
            return interrupts.exit_code
        self._conclude(process.returncode)
        return interrupts.exit_code

    def _stand_by(self, process: subprocess.Popen[bytes], interrupts: Interrupts, shown: Progress) -> None:
        heard = told = 0
        while process.poll() is None:
            if len(interrupts.received) > heard:
                heard += 1
                self._interrupted(heard, process, shown.note)
            told = self._tell_events(told, shown.note)
            shown.show(status_of(self.folder, self.steps))
            time.sleep(POLL_SECONDS)
        self._tell_events(told, shown.note)

    def _tell_events(self, told: int, note: Callable[[str], None]) -> int:
        events = self.marks.events()
        for event in events[told:]:
            if text := event_text(event):
                note(text)
        return len(events)

    def _interrupted(self, times: int, process: subprocess.Popen[bytes], note: Callable[[str], None]) -> None:
        if times == 1:
            request_stop(self.folder, "Ctrl-C")
            note("stopping: the workers save at the next step (Ctrl-C again kills them)")
        else:
            end(process)

    def _conclude(self, code: int) -> None:
        if not self.folder.path.exists():
            raise RunFailed("was deleted while it ran", where=str(self.folder.path), fix="start it again")
        if code != 0:
            raise self._failure(code)
        ending = latest(self.marks.events(), *ENDINGS)
        name, handle = self.folder.name, self.folder.handle
        if ending is None:
            say(f"{name} ended without a word; umbel logs {handle}")
        elif ending["event"] == "finished":
            say(f"{name} finished at step {ending['step']}; try: umbel generate {handle} --prompt '…'")
        else:
            say(f"{name} stopped at step {ending['step']}; to go on: umbel resume {handle}")

    def _failure(self, code: int) -> RunFailed:
        """What failed, as the newest start has it: the supervisor's verdict, else what was told first."""
        events = self.marks.events()
        told = [event for event in _newest_start(events) if event["event"] == "failed"]
        verdicts = [event for event in told if event.get("verdict")]
        event = (verdicts[-1:] + told + [_lost(code)])[0]
        gave_up = latest(events, "gave up")
        if words := (gave_up or event).get("words"):
            err.print(words, markup=False, soft_wrap=True)
        if gave_up:
            say(f"gave up: {gave_up['why']}")
        rank, error = event["rank"], event["error"]
        where = event.get("who", "torchrun") if rank is None else f"rank {rank}"
        option = "" if rank is None else f" --rank {rank}"
        failed = RunFailed(
            error, where=None if where in error else where, fix=f"umbel logs {self.folder.handle}{option}"
        )
        failed.exit_code = event.get("exit_code") or 1
        return failed


def _newest_start(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    starts = [number for number, event in enumerate(events) if event["event"] == "job"]
    return events[starts[-1] :] if starts else events


def _lost(code: int) -> dict[str, Any]:
    """What is told of a supervisor that could tell nothing itself."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return {"rank": None, "error": how, "who": "its supervisor"}


def _end_orphans(process: subprocess.Popen[bytes]) -> None:
    """Workers whose supervisor was killed get time for a collective save, then end."""
    end(process, signal.SIGTERM)
    deadline = time.monotonic() + processes.SAVE_SECONDS
    while end(process, 0) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    end(process)
