"""How one start of the workers ended, from everything that tells of it."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.supervise.finding import Finding
from launch.supervise.verdict import Failure, first_failure, lost_node

FINISHED, USER, LIMIT, PREEMPTED, REQUEUED, UNSAVED, FAILED = (
    "finished",
    "user",
    "time limit",
    "preempted",
    "requeued",
    "unsaved",
    "failed",
)
"""What ended a start. ``requeued``: an administrator or the loss of a node, and Slurm has it come back.
``unsaved``: saves failed until the last one, which did not."""

CANCELLED = "cancelled"
"""The reason of an ending by scancel."""

_BY_PLACE = {CANCELLED: USER, "preempted": PREEMPTED, "requeued": REQUEUED, "time limit": LIMIT}
_BY_WORKER = {"time limit": LIMIT, signal.SIGUSR2.name: LIMIT, "no checkpoint could be written": UNSAVED}


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a start ended.

    Attributes:
        cause: one of the names above; ``failed`` has a ``failure``, and others may have one.
        reason: in a user's words, what asked for it.
        saved: whether the workers saved and ended in order.
        stepped: whether it had made a step.
        way_back: where it could be rolled back to, ``to`` a step and past what data (``skip``), if anywhere.
    """

    cause: str
    reason: str
    saved: bool = True
    stepped: bool = True
    failure: Failure | None = None
    way_back: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What a start left behind.

    Attributes:
        code: exit code of what started the workers.
        output: what it and they printed.
        events: the start's own.
        place: why the place says that it ended them, if it did.
        lost: nodes that went while they worked there.
        finding: what was wrong with them, where they were killed for it.
        asked: who asked for a stop through the supervisor or the stop file that is still there.
        alone: whether the workers are one process.
    """

    code: int
    output: str
    events: Sequence[dict[str, Any]]
    place: str | None = None
    lost: Sequence[str] = ()
    finding: Finding | None = None
    asked: str | None = None
    stepped: bool = True
    alone: bool = False


def read_ending(traces: Traces) -> Ending:
    """What ended it.

    A person's wish that the workers heard comes first, then the place's word, a detector's and the workers'
    own, and last what they left.
    """
    words = {event["event"]: event for event in traces.events}
    if "finished" in words:
        return Ending(cause=FINISHED, reason=FINISHED, stepped=traces.stepped)
    stopped = words.get("stopped")
    if stopped is not None and _is_wish(stopped["reason"]):
        return Ending(cause=USER, reason=stopped["reason"], stepped=traces.stepped)
    # Rank 0 says so when all ranks have saved. Of Slurm's warning torchrun fails all the same; a SIGTERM they
    # also get when their launcher was killed.
    saved = stopped is not None and (traces.code == 0 or stopped["reason"] in _BY_WORKER)
    spared = saved and not (traces.lost and traces.place == REQUEUED)
    failure = None if spared else _failure(traces)
    if traces.place is not None:
        cause, reason = _BY_PLACE[traces.place], traces.place
    elif traces.finding is not None:
        cause, reason = FAILED, traces.finding.kind
    elif saved and stopped is not None:
        cause, reason = _BY_WORKER.get(stopped["reason"], USER), stopped["reason"]
    elif traces.asked is not None:
        cause, reason = _BY_WORKER.get(traces.asked, USER), traces.asked
    else:
        assert failure is not None
        cause, reason = FAILED, failure.cause
    if cause == LIMIT:
        reason = LIMIT  # whoever's clock it was
    if cause == REQUEUED and traces.lost:
        reason = "node"
    return Ending(cause=cause, reason=reason, saved=saved, stepped=traces.stepped, failure=failure)


def _is_wish(reason: str) -> bool:
    """Whether a person asked for it. Signals come from anybody."""
    return not reason.startswith("SIG") and reason not in (*_BY_WORKER, "another process was asked to")


def _failure(traces: Traces) -> Failure:
    if traces.finding is not None:
        finding = traces.finding
        return Failure(finding.facts.get("rank"), finding.node, finding.text, cause=finding.kind)
    if traces.lost:
        return lost_node(traces.lost[0])
    told = [event for event in traces.events if event["event"] == "failed"]
    return first_failure(traces.code, traces.output, told, traces.alone)
