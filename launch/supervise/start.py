"""One start of a run's workers: begun, watched until it ends, and cleared up after."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import processes
from launch.interrupts import Interrupts
from launch.supervise.alerts import Alerts
from launch.supervise.ending import LIMIT, Traces
from launch.supervise.finding import Detector, Finding
from launch.supervise.marks import Marks
from launch.supervise.place import Place, Process
from record.control import request_stop, stop_reason, stop_requested
from record.events import record_event
from record.folder import RunFolder

TICK_SECONDS = 0.5
LOOK_SECONDS = 30.0
"""Between two looks at what seldom changes: when the machines are taken away, whether the watchers live."""

LAST_SECONDS = 20.0
"""What is left of the machines' time when workers that have not ended by themselves are killed, so that their
supervisor still has the time to have the run come back."""

KILL_SECONDS = 60.0
"""How long what was killed may take to be gone."""


class Start:
    """Begins at once, with the command on these nodes.

    Args:
        attempt: the number that the workers will have.
        log: gets what they and their launcher print.
        detectors: look at the run while it goes on.
        signals: those that the supervisor got.

    Raises:
        UmbelError: the workers cannot be started.
    """

    def __init__(
        self,
        folder: RunFolder,
        place: Place,
        command: Sequence[str],
        nodes: Sequence[str],
        attempt: int,
        log: Path,
        detectors: Sequence[Detector],
        alerts: Alerts,
        signals: Interrupts,
    ) -> None:
        self.folder, self.place, self.command, self.nodes = folder, place, command, nodes
        self.attempt, self.detectors = attempt, list(detectors)
        self.alerts, self.signals = alerts, signals
        self.finding: Finding | None = None
        self.kill_at = float("inf")  # time.monotonic
        self.deadline = place.deadline()
        self.looked = time.monotonic()
        self.marks = Marks.now(folder, log)
        record_event(folder, "job", id=place.job, nodes=list(nodes), deadline=self.deadline)
        # Not in the same log: how they end says nothing of the workers.
        self.watch_log = log.with_name("watch.log")
        self.watchers = place.start_watchers(attempt, nodes, self.watch_log)
        self.process = place.start(command, nodes, log, attempt)

    def stand_by(self) -> None:
        """Return when the workers have ended, or had to be killed."""
        while not ended(self.process, TICK_SECONDS):
            self._listen()
            self._look_around()
            self._mind_deadline()
            self._look()
            if time.monotonic() > self.kill_at or self.finding is not None:
                self._kill()
                return

    def clear_up(self) -> None:
        """Leave nothing behind: workers whose launcher was killed get the time to save, then end."""
        if self.finding is None:
            until = min(self.kill_at, time.monotonic() + processes.SAVE_SECONDS)
            living = self.place.end(self.process, signal.SIGTERM)
            while living and time.monotonic() < until:
                time.sleep(TICK_SECONDS)
                living = self.place.end(self.process, 0)
        self._kill()
        dismiss(self.watchers)

    def traces(self) -> Traces:
        """What it left behind."""
        code, place = self.process.poll(), self.place.why_stopped()
        return Traces(
            code=-signal.SIGKILL if code is None else code,
            output=self.marks.output(),
            events=self.marks.events(),
            place=place,
            lost=self.place.lost(self.nodes) if code or place else [],
            finding=self.finding,
            asked=stop_reason(self.folder) or self.asked,
            stepped=self.marks.stepped,
            alone=_is_alone(self.command),
        )

    @property
    def asked(self) -> str | None:
        """The first signal that the supervisor got."""
        return signal.Signals(self.signals.received[0]).name if self.signals.received else None

    def _listen(self) -> None:
        """The first signal asks the workers to save and end; who then waits in vain kills them."""
        if self.asked is not None and self.kill_at == float("inf"):
            self._ask_to_stop(self.asked)
            self.kill_at = time.monotonic() + processes.SAVE_SECONDS

    def _ask_to_stop(self, reason: str) -> None:
        """A file, and no signal: it reaches the workers wherever they are, and no launcher dies of it."""
        with contextlib.suppress(OSError):  # the run's folder is gone
            if not stop_requested(self.folder):
                request_stop(self.folder, reason)

    def _look_around(self) -> None:
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked, self.deadline = time.monotonic(), self.place.deadline()
        if any(watcher.poll() is not None for watcher in self.watchers):
            dismiss(self.watchers)
            self.watchers = self.place.start_watchers(self.attempt, self.nodes, self.watch_log)

    def _mind_deadline(self) -> None:
        if self.deadline is None:
            return
        left = self.deadline - time.time()
        if left < self.place.grace:
            self._ask_to_stop(LIMIT)
        if left < min(LAST_SECONDS, self.place.grace / 2):
            self.kill_at = 0.0

    def _look(self) -> None:
        for detector in list(self.detectors):
            try:
                found = detector.look(time.time())
            except Exception as error:  # no watchman's fall may end the run he watches
                traceback.print_exc()
                self.detectors.remove(detector)
                self._record("warning", text=f"{type(detector).__name__} watches no more: {error!r}")
                continue
            for finding in found:
                self._take_note(finding)

    def _take_note(self, finding: Finding) -> None:
        about = {"node": finding.node} if finding.node is not None else {}
        self._record(finding.kind, **{"text": finding.text, **about, **finding.facts})
        if finding.alert:
            self.alerts.tell(finding.kind, finding.text)
        if finding.fatal and self.finding is None:
            self.finding = finding

    def _record(self, event: str, **facts: Any) -> None:
        with contextlib.suppress(FileNotFoundError):  # the folder was deleted while the run went on
            record_event(self.folder, event, **facts)

    def _kill(self) -> None:
        until = time.monotonic() + KILL_SECONDS
        while self.place.end(self.process, signal.SIGKILL) and time.monotonic() < until:
            ended(self.process, TICK_SECONDS)


def ended(process: Process, seconds: float) -> bool:
    """Wait for a process so long; whether it has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def dismiss(watchers: Sequence[Process]) -> None:
    """End them; they keep nothing that could be lost."""
    for watcher in watchers:
        watcher.terminate()
    for watcher in watchers:
        if not ended(watcher, 5.0):
            watcher.kill()
            watcher.wait()


def _is_alone(command: Sequence[str]) -> bool:
    """Whether a command is the only worker itself, and no launcher of several."""
    return Path(command[0]).name != "srun" and not any("torch.distributed.run" in part for part in command)
