"""The loop of a run's life: start the workers, watch them, and do what follows from how they ended."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from configs.schema import RunConfig
from launch.interrupts import Interrupts
from launch.supervise import decide as decisions
from launch.supervise.alerts import Alerts
from launch.supervise.blame import blame
from launch.supervise.decide import Decision, Facts, decide
from launch.supervise.ending import CANCELLED, FAILED, LIMIT, USER, Ending, read_ending
from launch.supervise.finding import Detector
from launch.supervise.place import Place
from launch.supervise.roster import Roster
from launch.supervise.start import Start
from launch.supervise.verdict import WORDS, Failure
from record.control import clear_stop, stop_reason
from record.events import latest, next_attempt, read_events, record_event
from record.folder import RunFolder
from record.rank_logs import last_lines, node_of

START_SECONDS = 60.0
"""What a start takes where none was measured."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

Detectors = Callable[[RunConfig, int, Sequence[str]], Sequence[Detector]]
"""Config, attempt and nodes of a start to the detectors that watch it."""


class Supervisor:
    """Stands by one run on one place.

    Args:
        read_config: called before each start, for a rollback may change the run.
        command: what starts the workers.
        detectors: makes those of a start.
        roll_back: goes back to ``to`` and leaves out the data ``skip``.
    """

    def __init__(
        self,
        folder: RunFolder,
        read_config: Callable[[], RunConfig],
        place: Place,
        command: Sequence[str],
        detectors: Detectors,
        roll_back: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.folder, self.read_config, self.place, self.command = folder, read_config, place, command
        self.make_detectors, self.roll_back = detectors, roll_back
        self.config = read_config()
        self.alerts = Alerts(folder, self.config.supervision)
        self.log = folder.logs / "launch.log"
        self.roster = Roster(folder, place, self.alerts)

    def run(self) -> int:
        """Until the run ends, or this job does; returns the exit code.

        Raises:
            UmbelError: the workers cannot be started, or the run cannot be brought back later.
        """
        try:
            with Interrupts(*SIGNALS) as self.signals:
                decision = self._live_once()
                while decision.action == decisions.AGAIN:
                    self._record("restart", why=decision.why, streak=decision.streak)
                    decision = self._live_once()
                self._depart(decision)
            return decision.code
        finally:
            self.alerts.close()

    def _live_once(self) -> Decision:
        """Start the workers, stand by until they end; what follows."""
        if (reason := self._asked_to_stop()) is not None:
            return self._not_started(reason)
        self.config = self.read_config()
        nodes = self.roster.choose(self.config, self.log)
        if nodes is None:
            if not self.place.requeues():
                raise self.roster.too_few(self.config)
            return Decision(decisions.REQUEUE, "too few nodes are left")
        attempt = next_attempt(self.folder)
        start = Start(
            self.folder,
            self.place,
            self.command,
            nodes,
            attempt,
            self.log,
            self.make_detectors(self.config, attempt, nodes),
            self.alerts,
            self.signals,
        )
        try:
            start.stand_by()
        finally:
            start.clear_up()
        return self._conclude(start)

    def _asked_to_stop(self) -> str | None:
        """A request made while no worker could hear it. What a supervisor wrote that was then killed itself,
        with its job, is none."""
        if self.signals.received:
            return signal.Signals(self.signals.received[0]).name
        reason = stop_reason(self.folder)
        if reason in (LIMIT, *(kind.name for kind in SIGNALS)):
            clear_stop(self.folder)
            return None
        return reason

    def _not_started(self, reason: str) -> Decision:
        self._record_stop(reason)
        clear_stop(self.folder)
        return Decision(decisions.END, reason)

    def _record_stop(self, reason: str, **facts: Any) -> None:
        """What the workers do not know, or are not there to tell."""
        newest = latest(read_events(self.folder), "stopped", "checkpoint")
        self._record("stopped", step=newest["step"] if newest else 0, reason=reason, **facts)

    def _conclude(self, start: Start) -> Decision:
        ending = self._with_way_back(self._located(read_ending(start.traces()), start), start)
        self._note(ending, start)
        decision = decide(ending, read_events(self.folder), self.config.supervision, self._facts())
        if decision.action == decisions.GIVE_UP:
            self._record("gave up", why=decision.why, words=self._words(ending, start))
            self.alerts.tell("gave up", decision.why)
        if decision.action == decisions.ROLL_BACK:
            assert ending.way_back is not None
            self.roll_back(ending.way_back)
            return decision._replace(action=decisions.AGAIN)
        return decision

    def _words(self, ending: Ending, start: Start) -> str:
        """The first failing rank's own last lines; those of all together, where it has no log."""
        failure = ending.failure
        if failure is None:
            return ""
        lines = failure.rank is not None and last_lines(self.folder, start.attempt, failure.rank, WORDS)
        return lines or failure.words

    def _located(self, ending: Ending, start: Start) -> Ending:
        """The ending with its node as Slurm calls it: torchrun knows the host's own name for itself."""
        failure = ending.failure
        if failure is None or failure.rank is None or failure.node in start.nodes:
            return ending
        alone = start.nodes[0] if len(start.nodes) == 1 else None
        node = alone or node_of(self.folder, start.attempt, failure.rank)
        return replace(ending, failure=failure._replace(node=node))

    def _with_way_back(self, ending: Ending, start: Start) -> Ending:
        """The ending with where it could be rolled back to, if its failure has such a place."""
        from launch.supervise.detect.spikes import after_nan

        if ending.failure is None:
            return ending
        if start.finding is not None:
            facts: Mapping[str, Any] | None = start.finding.facts
        else:
            facts = after_nan(self.folder, [e for e in start.marks.events() if e["event"] == "failed"])
        return replace(ending, way_back=facts) if facts and "to" in facts else ending

    def _note(self, ending: Ending, start: Start) -> None:
        """Write down what the workers could not: who failed first, and whose fault it was."""
        if ending.failure is not None and _is_news(ending, start.marks.events()):
            silent = ending.failure.words != ""
            facts = _facts_of(ending.failure) | ({"words": self._words(ending, start)} if silent else {})
            self._record("failed", **facts)
            if start.finding is None:  # else it was told
                self.alerts.tell("failed", str(ending.failure))
        if ending.reason == CANCELLED:
            self._record_stop("scancel", saved=ending.saved)
        if self.place.job is not None and (found := blame(ending)) is not None:
            self._record("blamed", node=found[0], why=found[1])
        if ending.cause != FAILED:
            clear_stop(self.folder)  # served, or nobody is left to serve it

    def _facts(self) -> Facts:
        deadline = self.place.deadline()
        needed = self.place.grace + 2 * start_seconds(read_events(self.folder))
        return Facts(
            requeues=self.place.requeues(),
            enough_nodes=self.roster.enough(self.config),
            enough_time=deadline is None or deadline - time.time() > needed,
        )

    def _depart(self, decision: Decision) -> None:
        if decision.action != decisions.REQUEUE:
            self.place.leave()
            return
        exclude = self.roster.excluded(self.config)
        # Before it is done: that may be the end of this process.
        self._record("requeue", why=decision.why, job=self.place.job, exclude=exclude)
        self.place.requeue(exclude)

    def _record(self, event: str, **facts: Any) -> None:
        with contextlib.suppress(FileNotFoundError):  # the folder was deleted while the run went on
            record_event(self.folder, event, **facts)


def start_seconds(events: Sequence[dict[str, Any]]) -> float:
    """What the newest start took until its workers stood."""
    stood: datetime | None = None
    for event in reversed(events):
        time_of = datetime.fromisoformat(event["time"])
        if event["event"] == "start" and stood is None:
            stood = time_of
        if event["event"] == "job" and stood is not None:
            return (stood - time_of).total_seconds()
    return START_SECONDS


def _is_news(ending: Ending, events: Sequence[dict[str, Any]]) -> bool:
    """Whether nobody tells it: a killed process writes nothing, and survivors write what they saw.

    Workers that were asked to stop, and did, have not failed, whatever became of what started them; nor have
    those that Slurm killed.
    """
    assert ending.failure is not None
    told = {event.get("error") for event in events if event["event"] == "failed"}
    stopped = any(event["event"] == "stopped" for event in events)
    failed = ending.cause == FAILED or (ending.cause == USER and ending.reason != CANCELLED and not stopped)
    return failed and ending.failure.error not in told


def _facts_of(failure: Failure) -> dict[str, Any]:
    facts = {"rank": failure.rank, "error": failure.error, "exit_code": failure.exit_code, "verdict": True}
    more = {"node": failure.node, "kind": failure.cause}
    return facts | {name: value for name, value in more.items() if value}
