"""What to do when the workers of a run have ended: one pure function of what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from configs.schema import Supervision
from launch.supervise.ending import FAILED, FINISHED, LIMIT, PREEMPTED, REQUEUED, UNSAVED, USER, Ending

END, AGAIN, REQUEUE, GIVE_UP, ROLL_BACK = "end", "again", "requeue", "give up", "roll back"

BAD_INPUT = 2
"""Exit code of what the user has to mend: another start would end alike."""

_PROGRESS = ("checkpoint", "submitted", "gave up")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the place has to say.

    Attributes:
        requeues: whether the run can come back later.
        enough_nodes: whether as many nodes as the run needs work, those that are left out not counted.
        enough_time: whether another start would have time to make steps and to save.
    """

    requeues: bool
    enough_nodes: bool = True
    enough_time: bool = True


class Decision(NamedTuple):
    """What happens now. ``code``: of a run that ends; ``streak``: starts in a row without progress."""

    action: str
    why: str
    code: int = 0
    streak: int = 0


def decide(ending: Ending, events: Sequence[dict[str, Any]], settings: Supervision, facts: Facts) -> Decision:
    """What follows from how a start of the workers ended."""
    streak = starts_without_progress(events)
    if ending.cause in (FINISHED, USER):
        return Decision(END, ending.reason, ending.failure.exit_code if ending.failure else 0)
    if ending.cause == FAILED:
        return _after_failure(ending, events, settings, facts)
    if ending.cause in (PREEMPTED, REQUEUED):
        # No fault of the run: it may happen as often as others have more right to the nodes.
        return _later(ending.reason, streak, facts)
    if streak >= settings.restarts:
        return Decision(GIVE_UP, _no_progress(streak, ending.reason), 1, streak)
    if ending.cause == LIMIT:
        return _later(ending.reason, streak, facts)
    assert ending.cause == UNSAVED
    return _onward(ending.reason, streak, facts)


def starts_without_progress(events: Sequence[dict[str, Any]]) -> int:
    """How many of the newest starts in a row brought no checkpoint.

    Counted since somebody last submitted or launched the run, for who did may have mended it.
    """
    count = 0
    for event in reversed(events):
        if event["event"] in _PROGRESS or _is_launch(event):
            break
        count += event["event"] == "job"
        if event["event"] == "requeue" and event.get("why") in (PREEMPTED, REQUEUED, "node"):
            count -= 1  # that start was not given its time
    return max(0, count)


def _is_launch(event: dict[str, Any]) -> bool:
    return event["event"] == "phase" and event["name"] == "starting workers"


def _is_first_start(events: Sequence[dict[str, Any]]) -> bool:
    """Whether the run was started once since somebody launched it."""
    launches = [number for number, event in enumerate(events) if _is_launch(event)]
    since = events[launches[-1] :] if launches else events
    return sum(event["event"] == "job" for event in since) == 1


def _after_failure(
    ending: Ending, events: Sequence[dict[str, Any]], settings: Supervision, facts: Facts
) -> Decision:
    failure, streak = ending.failure, starts_without_progress(events)
    assert failure is not None
    policy = {"nan": settings.on_nan, "spike": settings.on_spike}.get(failure.cause)
    if failure.exit_code == BAD_INPUT:
        return Decision(END, ending.reason, BAD_INPUT)
    if policy == "rollback" and ending.way_back is not None and streak < settings.restarts:
        return Decision(ROLL_BACK, ending.reason, 0, streak)
    if policy is not None or failure.final:
        return Decision(END, ending.reason, failure.exit_code)
    if not (facts.requeues or ending.stepped) and _is_first_start(events):
        # Somebody sits here: better told at once than tried again.
        return Decision(END, ending.reason, failure.exit_code)
    if streak >= settings.restarts:
        return Decision(GIVE_UP, _no_progress(streak, str(failure)), 1, streak)
    return _onward(ending.reason, streak, facts)


def _onward(why: str, streak: int, facts: Facts) -> Decision:
    """Here and at once, without a wait in the queue, where there are nodes and time for it."""
    if facts.enough_nodes and facts.enough_time:
        return Decision(AGAIN, why, 0, streak)
    return _later(why, streak, facts)


def _later(why: str, streak: int, facts: Facts) -> Decision:
    return Decision(REQUEUE if facts.requeues else END, why, 0, streak)


def _no_progress(streak: int, why: str) -> str:
    starts = "the only start" if streak == 1 else f"{streak} starts in a row"
    return f"{starts} brought no checkpoint; at last {why}"
