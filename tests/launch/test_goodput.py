from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.goodput import LOST, Goodput, goodput

BEGIN = 1_800_000_000.0


class Diary:
    """A run's records, written by a clock that the test moves."""

    def __init__(self) -> None:
        self.now = BEGIN
        self.events: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.attempt = 0

    @property
    def time(self) -> str:
        return datetime.fromtimestamp(self.now, UTC).isoformat(timespec="milliseconds")

    def after(self, seconds: float, event: str, **facts: Any) -> None:
        self.now += seconds
        self.events.append({"event": event, "time": self.time, **facts})

    def start(self, seconds: float, step: int) -> None:
        self.attempt += 1
        self.after(seconds, "start", attempt=self.attempt, step=step)

    def steps(self, first: int, last: int, seconds: float = 2.0) -> None:
        """Steps of so many seconds, told together."""
        self.now += seconds * (last - first + 1)
        facts = {"time": self.time, "attempt": self.attempt, "step_seconds": seconds}
        self.lines += [{"step": step, **facts} for step in range(first, last + 1)]

    def tell(self, now: float | None = None) -> Goodput:
        return goodput(self.events, self.lines, now)


def lost(found: Goodput) -> dict[str, float]:
    return {cause: pytest.approx(seconds, abs=0.01) for cause, seconds in found.lost.items() if seconds}


def test_a_life_with_everything_in_it() -> None:
    run = Diary()
    run.after(0, "submitted", job="1", script="job/attempt-0001/submit.sh")
    run.after(100, "job", id="1")
    run.start(25, step=0)
    run.now += 5  # to the first step
    run.steps(1, 10)
    run.after(4, "evaluation", step=10, losses={})
    run.steps(11, 20)
    run.now += 3  # held by a save
    run.steps(21, 30)
    run.events.append({"event": "checkpoint", "time": run.time, "step": 20, "blocked": 3.0, "seconds": 9.0})
    run.after(6, "failed", rank=1, error="was killed by SIGKILL", verdict=True)  # steps that nobody told
    run.after(1, "restart", why="killed", streak=0)
    run.after(2, "job", id="1")
    run.start(20, step=20)
    run.steps(21, 30)
    run.after(60, "hang", text="hang: …")
    run.after(1, "failed", rank=0, error="hang", verdict=True)
    run.after(0, "requeue", why="hang", job="1")
    run.after(130, "job", id="1")
    run.start(20, step=20)
    run.steps(21, 40)
    run.after(2, "finished", step=40)
    found = run.tell()
    assert found.seconds == pytest.approx(run.now - BEGIN)
    assert found.useful == pytest.approx(2 * 40, abs=0.01)
    assert found.lost == {
        **dict.fromkeys(LOST, 0.0),
        **lost(found),
        "queueing": pytest.approx(230, abs=0.01),
        "starting": pytest.approx(30 + 20 + 20, abs=0.01),
        "repeated": pytest.approx(2 * 10 + 6 + 2 * 10, abs=0.01),
        "saving": pytest.approx(3 + 2, abs=0.01),
        "evaluating": pytest.approx(4, abs=0.01),
        "hang": pytest.approx(60, abs=0.01),
        "down": pytest.approx(1 + 2 + 1, abs=0.01),
    }
    assert (found.useful_steps, found.executed_steps) == (40, 60)
    assert found.step_share == pytest.approx(40 / 60)


def test_an_end_that_somebody_asked_for_is_a_pause_until_somebody_goes_on() -> None:
    run = Diary()
    run.after(0, "phase", name="starting workers")
    run.after(1, "job", id=None)
    run.start(9, step=0)
    run.steps(1, 5)
    run.after(1, "stopped", step=5, reason="umbel stop")
    run.after(5000, "phase", name="starting workers")
    run.after(1, "job", id=None)
    run.start(9, step=5)
    run.steps(6, 10)
    found = run.tell(now=run.now + 3)
    assert found.useful == pytest.approx(20, abs=0.01)
    assert lost(found) == {"starting": 20, "saving": 1, "paused": 5000}


def test_a_kill_of_everything_leaves_no_word() -> None:
    run = Diary()
    run.after(0, "job", id="1")
    run.start(10, step=0)
    run.steps(1, 10)
    run.after(7, "checkpoint", step=5, blocked=0.0)
    run.after(1000, "job", id="2")
    assert lost(run.tell()) == {"starting": 10, "repeated": 7, "down": 1000}
    assert lost(run.tell(now=run.now + 30))["starting"] == 40


def test_what_waits_or_starts_counts_until_now_and_what_works_until_its_last_step() -> None:
    run = Diary()
    run.after(0, "submitted", job="1", script="a")
    assert lost(run.tell(now=BEGIN + 50)) == {"queueing": 50}
    run.after(50, "job", id="1")
    assert lost(run.tell(now=BEGIN + 60)) == {"queueing": 50, "starting": 10}
    run.start(10, step=0)
    run.steps(1, 2)
    assert run.tell(now=run.now + 99).seconds == pytest.approx(run.now - BEGIN)


def test_what_a_cancel_did_not_save_is_lost() -> None:
    run = Diary()
    run.after(0, "job", id=None)
    run.start(1, step=0)
    run.steps(1, 10)
    run.after(5, "stopped", step=0, reason="umbel cancel by ann")
    assert lost(run.tell()) == {"starting": 1, "repeated": 5}


def test_a_rollback_gives_steps_up() -> None:
    run = Diary()
    run.after(0, "job", id=None)
    run.start(1, step=0)
    run.steps(1, 10)
    run.after(0, "stopped", step=10, reason="umbel stop")
    run.after(1, "rollback", to=4, **{"from": 10})
    found = run.tell()
    assert (found.useful_steps, found.executed_steps) == (4, 10)
    assert found.useful == pytest.approx(8, abs=0.01)
    assert found.lost["repeated"] == pytest.approx(12, abs=0.01)


def test_a_run_without_records_lost_nothing() -> None:
    assert goodput([], [], None) == goodput([], [], BEGIN)
    assert goodput([], []).seconds == 0


EVENTS = (
    *(
        {"event": name}
        for name in ("submitted", "requeue", "restart", "gave up", "finished", "hang", "alert")
    ),
    *({"event": name, "step": step} for name in ("checkpoint", "evaluation", "stopped") for step in (3, 7)),
    {"event": "failed", "error": "x"},
    {"event": "job", "id": "1"},
    {"event": "phase", "name": "starting workers"},
    {"event": "phase", "name": "first step", "attempt": 1},
    {"event": "rollback", "to": 3, "from": 9},
)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1e4), st.sampled_from(EVENTS)), max_size=40),
    st.randoms(use_true_random=False),
    st.none() | st.floats(0, 1e5),
)
def test_the_parts_are_the_whole_whatever_happened(
    told: list[tuple[int, float, dict[str, Any]]], draw: random.Random, later: float | None
) -> None:
    run, step = Diary(), 0
    for kind, seconds, event in told:
        if kind < 2 and run.attempt:
            count = draw.randint(1, 5)
            run.now += seconds
            run.steps(step + 1, step + count, draw.choice([0.0, 0.5, 30.0]))
            step += count
        elif kind == 2:
            step = draw.randint(0, step)
            run.start(seconds, step)
        else:
            facts = dict(event)
            run.after(seconds, facts.pop("event"), **facts)
    found = run.tell(None if later is None else run.now + later)
    assert found.useful + sum(found.lost.values()) == pytest.approx(found.seconds)
    assert min(found.useful, *found.lost.values()) >= 0
    assert found.seconds <= run.now - BEGIN + (later or 0) + 1e-3 + 30 * 5 * len(told)
    assert 0 <= found.share <= 1 and 0 <= found.step_share <= 1
