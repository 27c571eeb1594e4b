"""What follows from how a start ended, as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from configs.schema import Supervision
from launch.supervise.blame import blame, choose, left_out
from launch.supervise.decide import (
    AGAIN,
    END,
    GIVE_UP,
    REQUEUE,
    ROLL_BACK,
    Facts,
    decide,
    starts_without_progress,
)
from launch.supervise.ending import FAILED, FINISHED, LIMIT, PREEMPTED, UNSAVED, USER, Ending
from launch.supervise.verdict import Failure

JOB: dict[str, Any] = {"event": "job"}
SAVED: dict[str, Any] = {"event": "checkpoint", "step": 7}
LAUNCH: dict[str, Any] = {"event": "phase", "name": "starting workers"}
FIRST, PROGRESS = [LAUNCH, JOB], [LAUNCH, JOB, SAVED]
THIRD = [LAUNCH, JOB, SAVED, JOB, JOB, JOB]

HERE = Facts(requeues=False)
SLURM = Facts(requeues=True)
LATE = Facts(requeues=True, enough_time=False)
FEW = Facts(requeues=True, enough_nodes=False)
LAST_OF_CHAIN = Facts(requeues=False, enough_time=False)


def failed(cause: str, code: int = 1, *, stepped: bool = True, **more: Any) -> Ending:
    failure = Failure(3, "node2", f"was {cause}", code, cause, more.pop("final", False))
    return Ending(cause=FAILED, reason=cause, saved=False, stepped=stepped, failure=failure, **more)


def ended(cause: str, **more: Any) -> Ending:
    return Ending(cause=cause, reason=cause, **more)


RAISED, KILLED, HUNG = failed("raised"), failed("killed"), failed("hang")
UNBEGUN = failed("raised", stepped=False)
REFUSED, FOUND = failed("raised", 2), failed("raised", final=True)
NAN = failed("nan", final=True, way_back={"to": 5})
SPIKE = failed("spike", way_back={"to": 5})
ROLL = Supervision(on_nan="rollback", on_spike="rollback")


@pytest.mark.parametrize(
    ("ending", "events", "facts", "action", "code"),
    [
        # In order.
        (ended(FINISHED), PROGRESS, SLURM, END, 0),
        (ended(USER), PROGRESS, SLURM, END, 0),
        (ended(USER), THIRD, SLURM, END, 0),
        (replace(RAISED, cause=USER), PROGRESS, SLURM, END, 1),  # asked to stop, and failed while saving
        # Nobody's fault.
        (ended(LIMIT), PROGRESS, SLURM, REQUEUE, 0),
        (ended(LIMIT), PROGRESS, LAST_OF_CHAIN, END, 0),
        (ended(LIMIT), THIRD, SLURM, GIVE_UP, 1),
        (replace(KILLED, cause=LIMIT), PROGRESS, SLURM, REQUEUE, 0),  # did not end by itself
        (ended(PREEMPTED), PROGRESS, SLURM, REQUEUE, 0),
        (ended(PREEMPTED), THIRD, SLURM, REQUEUE, 0),
        (replace(KILLED, cause=PREEMPTED), FIRST, SLURM, REQUEUE, 0),
        (ended(UNSAVED), PROGRESS, HERE, AGAIN, 0),
        (ended(UNSAVED), THIRD, HERE, GIVE_UP, 1),
        # On this machine.
        (RAISED, FIRST, HERE, AGAIN, 0),
        (KILLED, PROGRESS, HERE, AGAIN, 0),
        (HUNG, PROGRESS, HERE, AGAIN, 0),
        (RAISED, THIRD, HERE, GIVE_UP, 1),
        (KILLED, THIRD, HERE, GIVE_UP, 1),
        (UNBEGUN, FIRST, HERE, END, 1),
        (UNBEGUN, [*PROGRESS, JOB], HERE, AGAIN, 0),  # it worked before, and nobody may be there any more
        (UNBEGUN, [*PROGRESS, LAUNCH, JOB], HERE, END, 1),
        (REFUSED, PROGRESS, HERE, END, 2),
        (FOUND, PROGRESS, HERE, END, 1),
        # On Slurm.
        (RAISED, FIRST, SLURM, AGAIN, 0),
        (UNBEGUN, FIRST, SLURM, AGAIN, 0),
        (UNBEGUN, THIRD, SLURM, GIVE_UP, 1),
        (KILLED, PROGRESS, LATE, REQUEUE, 0),
        (KILLED, PROGRESS, FEW, REQUEUE, 0),
        (failed("node"), PROGRESS, FEW, REQUEUE, 0),
        (failed("node"), PROGRESS, SLURM, AGAIN, 0),
        (HUNG, PROGRESS, SLURM, AGAIN, 0),
        (REFUSED, FIRST, SLURM, END, 2),
        (REFUSED, THIRD, SLURM, END, 2),
        (FOUND, FIRST, SLURM, END, 1),
        (NAN, PROGRESS, SLURM, END, 1),
        (SPIKE, PROGRESS, SLURM, END, 1),
    ],
)
def test_every_ending_has_its_answer(
    ending: Ending, events: list[dict[str, Any]], facts: Facts, action: str, code: int
) -> None:
    settings = replace(Supervision(), on_spike="stop")
    decision = decide(ending, events, settings, facts)
    assert (decision.action, decision.code) == (action, code)


@pytest.mark.parametrize("ending", [NAN, SPIKE])
def test_what_the_policy_rolls_back(ending: Ending) -> None:
    assert decide(ending, PROGRESS, ROLL, SLURM).action == ROLL_BACK
    assert decide(ending, THIRD, ROLL, SLURM).action == END, "not without end"
    assert decide(replace(ending, way_back=None), PROGRESS, ROLL, SLURM).action == END, "nowhere to go"


def test_giving_up_says_why() -> None:
    decision = decide(KILLED, THIRD, Supervision(), SLURM)
    assert decision.why == "3 starts in a row brought no checkpoint; at last rank 3 on node2: was killed"
    assert decision.streak == 3


def test_the_streak_is_read_from_the_events() -> None:
    preempted = {"event": "requeue", "why": PREEMPTED}
    late = {"event": "requeue", "why": LIMIT}
    assert starts_without_progress([]) == 0
    assert starts_without_progress(FIRST) == 1
    assert starts_without_progress(PROGRESS) == 0
    assert starts_without_progress(THIRD) == 3
    assert starts_without_progress([*THIRD, LAUNCH, JOB]) == 1, "whoever launches it may have mended it"
    assert starts_without_progress([*THIRD, {"event": "submitted"}, JOB]) == 1
    assert starts_without_progress([LAUNCH, JOB, preempted, JOB]) == 1
    assert starts_without_progress([LAUNCH, JOB, late, JOB]) == 2


def test_machines_are_blamed_and_the_run_is_not() -> None:
    assert blame(KILLED) == ("node2", "was killed")
    assert blame(failed("device")) == ("node2", "was device")
    assert blame(RAISED) is None
    assert blame(ended(FINISHED)) is None


def test_a_node_with_too_many_faults_is_left_out_and_the_least_blamed_come_first() -> None:
    events = [{"event": "blamed", "node": node} for node in ("b", "c", "c")]
    assert left_out(events, 2) == ["c"]
    assert choose(["a", "b", "c", "d"], 2, events, 2) == ["a", "d"]
    assert choose(["a", "b", "c", "d"], 3, events, 2) == ["a", "b", "d"]
    assert choose(["a", "b", "c", "d"], 4, events, 2) is None
