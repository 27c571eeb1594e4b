"""The first failure, from what launchers and workers say."""

from __future__ import annotations

from typing import Any

import pytest

from launch.supervise.ending import (
    FAILED,
    FINISHED,
    LIMIT,
    PREEMPTED,
    REQUEUED,
    UNSAVED,
    USER,
    Traces,
    read_ending,
)
from launch.supervise.finding import Finding
from launch.supervise.verdict import first_failure

TORCHRUN = """step 3
E1123 13:00:00.000000 12 torch/distributed/elastic/multiprocessing/api.py:1010] failed (exitcode: -9)
Root Cause (first observed failure):
[0]:
  time      : 2026-11-23_13:00:00
  host      : node2.cluster
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 77)
"""
RAISED: dict[str, Any] = {"event": "failed", "rank": 3, "error": "a fault", "exit_code": 1, "node": "node2"}
PEER: dict[str, Any] = {"event": "failed", "rank": 0, "error": "connection closed", "exit_code": 1}


def test_a_lone_worker() -> None:
    killed = first_failure(-9, "", [], alone=True)
    assert (killed.rank, killed.cause) == (0, "killed")
    assert "was killed by SIGKILL" in killed.error
    crashed = first_failure(1, "step 3\nRuntimeError: a fault\n", [], alone=True)
    assert (crashed.rank, crashed.error) == (0, "ended with exit code 1")
    assert crashed.words == "step 3\nRuntimeError: a fault"


def test_torchrun_itself() -> None:
    assert first_failure(-9, "", [], alone=False).rank is None


def test_torchruns_root_cause() -> None:
    killed = first_failure(1, TORCHRUN.format(code=-9), [PEER], alone=False)
    assert (killed.rank, killed.node, killed.cause) == (1, "node2", "killed")
    raised = first_failure(1, TORCHRUN.format(code=1), [RAISED, PEER], alone=False)
    assert (raised.rank, raised.error, raised.cause) == (3, "a fault", "raised")
    silent = first_failure(1, TORCHRUN.format(code=7), [], alone=False)
    assert (silent.rank, silent.error, silent.words) == (1, "ended with exit code 7", "step 3")


@pytest.mark.parametrize(
    ("line", "rank", "node", "error"),
    [
        ("srun: error: node2: task 3: Killed", 3, "node2", "was killed by SIGKILL"),
        ("srun: error: node2: tasks 2-3: Killed", 2, "node2", "was killed by SIGKILL"),
        ("srun: error: node1: task 0: Segmentation fault (core dumped)", 0, "node1", "SIGSEGV"),
        ("srun: error: node1: task 1: Out Of Memory", 1, "node1", "ran out of the memory"),
        ("srun: error: Node failure on node2", None, "node2", "node node2 was lost"),
    ],
)
def test_sruns_words(line: str, rank: int | None, node: str, error: str) -> None:
    survivors = "srun: Terminating StepId=5.0\nsrun: error: node1: task 0: Exited with exit code 1\n"
    failure = first_failure(137, f"step 3\n{line}\n{survivors}", [PEER], alone=False)
    assert (failure.rank, failure.node) == (rank, node)
    assert error in failure.error
    assert failure.exit_code == 1


def test_a_rank_that_raised_under_srun_speaks_for_itself() -> None:
    output = "srun: error: node2: task 3: Exited with exit code 1\nsrun: error: node1: tasks 0-1: Killed\n"
    failure = first_failure(1, output, [RAISED, PEER], alone=False)
    assert (failure.rank, failure.node, failure.error) == (3, "node2", "a fault")
    silent = first_failure(1, output, [], alone=False)
    assert (silent.rank, silent.node, silent.error) == (3, "node2", "ended with exit code 1")


def test_bad_input_keeps_its_code() -> None:
    refused = {**RAISED, "exit_code": 2}
    assert first_failure(2, "", [refused], alone=True).exit_code == 2
    assert first_failure(2, "no such file", [], alone=True).exit_code == 2
    assert first_failure(3, "", [], alone=True).exit_code == 1


def test_what_the_run_is_at_fault_for_and_what_a_device() -> None:
    nan = {**RAISED, "error": "step 3, rank 0: the loss is nan; lower optimizer.lr", "final": True}
    assert first_failure(1, "", [nan], alone=True)[-3:-1] == ("nan", True)
    device = {**RAISED, "error": "AcceleratorError: CUDA error: uncorrectable ECC error encountered"}
    assert first_failure(1, "", [device], alone=True).cause == "device"


# Endings ----------------------------------------------------------------------------------------------


def stopped(reason: str) -> list[dict[str, Any]]:
    return [{"event": "start"}, {"event": "stopped", "step": 3, "reason": reason}]


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("umbel stop", USER),
        ("control/stop", USER),
        ("SIGTERM", USER),
        ("UMBEL_STOP_AFTER=3", USER),
        ("time limit", LIMIT),
        ("SIGUSR2", LIMIT),
        ("no checkpoint could be written", UNSAVED),
    ],
)
def test_workers_that_saved_say_why(reason: str, cause: str) -> None:
    ending = read_ending(Traces(code=0, output="", events=stopped(reason)))
    told = LIMIT if cause == LIMIT else reason
    assert (ending.cause, ending.reason, ending.saved, ending.failure) == (cause, told, True, None)


@pytest.mark.parametrize(
    ("place", "cause"),
    [("preempted", PREEMPTED), ("requeued", REQUEUED), ("time limit", LIMIT), ("cancelled", USER)],
)
@pytest.mark.parametrize("code", [0, 137])
def test_the_place_knows_better(place: str, cause: str, code: int) -> None:
    ending = read_ending(Traces(code=code, output="", events=stopped("SIGTERM"), place=place))
    assert (ending.cause, ending.reason, ending.saved) == (cause, place, code == 0)


def test_what_a_person_asked_for_stays_whatever_came_after() -> None:
    events = stopped("umbel stop")
    ending = read_ending(Traces(code=137, output="", events=events, place="time limit"))
    assert (ending.cause, ending.reason, ending.saved, ending.failure) == (USER, "umbel stop", True, None)


def test_a_run_that_finished_has_finished_whatever_came_after() -> None:
    events = [{"event": "finished", "step": 9}]
    assert read_ending(Traces(code=1, output="", events=events, place="preempted")).cause == FINISHED


def test_a_finding_is_the_failure() -> None:
    finding = Finding(kind="hang", text="rank 1 waits", fatal=True, node="node2", facts={"rank": 1})
    ending = read_ending(Traces(code=-9, output="", events=[PEER], finding=finding))
    assert (ending.cause, ending.reason) == (FAILED, "hang")
    assert ending.failure is not None
    assert ending.failure[:5] == (1, "node2", "rank 1 waits", 1, "hang")


def test_workers_that_were_asked_and_failed() -> None:
    ending = read_ending(Traces(code=1, output="", events=[RAISED], asked="umbel stop"))
    assert (ending.cause, ending.saved) == (USER, False)
    assert ending.failure is not None


def test_a_launcher_that_fails_of_the_warning_is_nobody_s_fault() -> None:
    ending = read_ending(Traces(code=1, output="", events=stopped("SIGUSR2")))
    assert (ending.cause, ending.reason, ending.saved, ending.failure) == (LIMIT, LIMIT, True, None)


def test_survivors_that_saved_do_not_hide_a_launcher_that_was_killed() -> None:
    ending = read_ending(Traces(code=-9, output="", events=stopped("SIGTERM")))
    assert (ending.cause, ending.reason) == (FAILED, "killed")
