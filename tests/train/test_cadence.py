"""When to save: rules of steps and minutes, and an interval that loses least time to failures."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Checkpoint, Cluster
from train.cadence import FIRST_MINUTES, WRITING_SLOWS, Cadence, expected_loss, optimal_interval

HOUR = 3600.0


def cadence(*, nodes: int = 1, mtbf_hours: float = 5000.0, **keys: object) -> Cadence:
    return Cadence(Checkpoint(**keys), Cluster(mtbf_hours=mtbf_hours, nodes=nodes))  # type: ignore[arg-type]


def steps_saved(asked: Cadence, steps: int, seconds: float, first: int = 1) -> list[int]:
    """The steps at which it is due, when a step takes ``seconds``."""
    return [step for step in range(first, first + steps) if asked.due(step, 1000 + step * seconds)]


@given(every=st.integers(1, 50), first=st.integers(1, 1000), seconds=st.floats(0, 1e4))
def test_every_so_many_steps_depends_on_the_step_alone(every: int, first: int, seconds: float) -> None:
    found = steps_saved(cadence(every=every), 200, seconds, first)
    assert found == [step for step in range(first, first + 200) if step % every == 0]


def test_zero_is_never() -> None:
    assert steps_saved(cadence(every=0), 500, 1e5) == []


def test_minutes_count_from_the_last_save_whatever_asked_for_it() -> None:
    assert steps_saved(cadence(every=0, every_minutes=1), 40, 6.0) == [11, 21, 31]
    assert steps_saved(cadence(every=8, every_minutes=1), 40, 6.0) == [8, 16, 24, 32, 40]
    assert steps_saved(cadence(every=15, every_minutes=1), 40, 6.0) == [11, 15, 25, 30, 40]
    asked = cadence(every=0, every_minutes=1)
    assert not asked.due(1, 0.0)
    asked.saved(1, 50.0, 1.0, 10.0)
    assert not asked.due(2, 99.0)
    assert asked.due(3, 100.0)


def test_an_old_outcome_does_not_put_off_the_next_save() -> None:
    asked = cadence(every=0, every_minutes=1)
    asked.due(1, 0.0)
    assert asked.due(2, 60.0)
    asked.saved(2, 75.0, 1.0, 13.0)
    assert asked.due(3, 120.0)


def test_auto_saves_early_before_it_knows_what_a_save_costs() -> None:
    assert steps_saved(cadence(every="auto"), 14, 10.0)[0] == 1 + FIRST_MINUTES * 6
    assert cadence(every="auto", max_minutes=0.5).interval == 30


def test_auto_follows_the_measured_cost_and_the_size_of_the_job() -> None:
    asked = cadence(every="auto", nodes=100, mtbf_hours=5000)
    asked.saved(10, 0.0, 1.5, 11.5)
    assert asked.interval == optimal_interval(1.5 + 10 * WRITING_SLOWS, 50 * HOUR)
    assert 13 * 60 < asked.interval < 15 * 60
    smaller = cadence(every="auto", nodes=1, mtbf_hours=5000)
    smaller.saved(10, 0.0, 1.5, 11.5)
    assert smaller.interval == HOUR  # Daly says two and a quarter; max_minutes caps it.
    assert cadence(every="auto", nodes=100, every_minutes=0.5).interval == 30


def test_one_slow_save_does_not_change_the_interval() -> None:
    asked = cadence(every="auto", nodes=100)
    for blocked in (1.0, 1.0, 300.0):
        asked.saved(10, 0.0, blocked, blocked)
    assert asked.interval == optimal_interval(1.0, 50 * HOUR)
    for _ in range(3):
        asked.saved(10, 0.0, 16.0, 16.0)
    assert asked.interval == optimal_interval(16.0, 50 * HOUR)


def test_auto_is_not_always_writing() -> None:
    asked = cadence(every="auto", max_minutes=10)
    asked.saved(10, 0.0, 0.1, 30 * 60 + 0.1)
    assert asked.interval == 90 * 60


@pytest.mark.parametrize(("mtbf_hours", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_the_form_gives_what_dalys_paper_prints(mtbf_hours: float, minutes: float) -> None:
    # Figures 3 to 5, saves of 5 minutes: his interval is the work alone.
    cost = 300.0
    assert (optimal_interval(cost, mtbf_hours * HOUR) - cost) / 60 == pytest.approx(minutes, rel=0.006)


def test_short_saves_follow_youngs_rule_and_hopeless_ones_the_failures() -> None:
    assert optimal_interval(1.0, 1e9) == pytest.approx(math.sqrt(2e9), rel=1e-4)
    assert optimal_interval(300.0, 100.0) == 400.0


@given(mtbf=st.floats(HOUR, 1e4 * HOUR), share=st.floats(1e-6, 0.2), other=st.floats(0.05, 20))
def test_no_other_interval_loses_less(mtbf: float, share: float, other: float) -> None:
    cost = share * mtbf
    best = optimal_interval(cost, mtbf)
    elsewhere = max(cost * 1.001, best * other)
    least = expected_loss(best, cost, 0.0, mtbf)
    assert least <= expected_loss(elsewhere, cost, 0.0, mtbf) * 1.001
    assert 0 < least < 1


def simulated_loss(
    interval: float, cost: float, restart: float, mtbf: float, work: float, seed: int
) -> float:
    """Share of the time lost by a job of ``work`` seconds whose failures are drawn."""
    draw = random.Random(seed)
    clock = done = ready = 0.0
    failure = draw.expovariate(1 / mtbf)
    while done < work:
        end = clock + ready + interval
        if failure < end:
            clock, ready = failure, restart
            failure = clock + draw.expovariate(1 / mtbf)
        else:
            clock, ready, done = end, 0.0, done + interval - cost
    return 1 - done / clock


@pytest.mark.parametrize(("cost", "mtbf"), [(20.0, 6 * HOUR), (120.0, 12 * HOUR), (600.0, 24 * HOUR)])
def test_simulated_failures_agree_that_it_beats_four_times_and_a_quarter(cost: float, mtbf: float) -> None:
    best = optimal_interval(cost, mtbf)
    losses = {
        factor: simulated_loss(best * factor, cost, 300.0, mtbf, work=20_000 * HOUR, seed=7)
        for factor in (0.25, 1.0, 4.0)
    }
    assert losses[1.0] < 0.8 * min(losses[0.25], losses[4.0])
    for factor, loss in losses.items():
        assert loss == pytest.approx(expected_loss(best * factor, cost, 300.0, mtbf), rel=0.05)
