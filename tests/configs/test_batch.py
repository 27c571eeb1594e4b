from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from base.errors import UmbelError
from configs.batch import batch_divisor, check_batch, global_batch_at, ramp_stages, sequences_at
from configs.compose import compose
from configs.schema import BatchRamp, RunConfig, Schedule

BASE = compose([])


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule that `configs.check` accepts, ramps included."""
    if draw(st.booleans()):
        return Schedule(global_batch=draw(st.integers(1, 4096)))
    start, increment = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    stages, sequences = draw(st.integers(0, 12)), draw(st.integers(1, 20_000))
    ramp = BatchRamp(start=start, increment=increment, sequences=sequences)
    return Schedule(global_batch=start + stages * increment, batch_ramp=ramp)


def with_batch(schedule: Schedule, micro: int | str = "auto", accumulation: int | None = None) -> RunConfig:
    parallelism = dataclasses.replace(BASE.parallelism, micro_batch=micro, accumulation=accumulation)
    return dataclasses.replace(BASE, parallelism=parallelism, schedule=schedule)


def test_without_a_ramp_every_step_is_alike() -> None:
    schedule = Schedule(global_batch=48)
    assert [sequences_at(schedule, step) for step in range(4)] == [0, 48, 96, 144]
    assert global_batch_at(schedule, 1) == 48


def test_a_ramp_climbs_by_its_increment() -> None:
    schedule = Schedule(global_batch=64, batch_ramp=BatchRamp(start=16, increment=16, sequences=480))
    # Three plateaus of 160 sequences: 10 steps of 16, 5 of 32, 3 of 48 (160/48 rounded).
    assert ramp_stages(schedule) == [(16, 10), (32, 5), (48, 3)]
    assert [global_batch_at(schedule, step) for step in (1, 10, 11, 15, 16, 18, 19, 1000)] == [
        16, 16, 32, 32, 48, 48, 64, 64,
    ]  # fmt: skip
    assert sequences_at(schedule, 18) == 160 + 160 + 144


@given(schedules(), st.integers(0, 2000))
def test_sequences_are_the_sum_of_the_batches_before(schedule: Schedule, steps: int) -> None:
    assert sequences_at(schedule, 0) == 0
    steps %= 200
    assert sequences_at(schedule, steps) == sum(
        global_batch_at(schedule, step) for step in range(1, steps + 1)
    )


@given(schedules(), st.integers(1, 10**9))
def test_the_batch_never_shrinks_and_reaches_its_size(schedule: Schedule, step: int) -> None:
    assert (
        1 <= global_batch_at(schedule, step) <= global_batch_at(schedule, step + 1) <= schedule.global_batch
    )
    ramp_steps = sum(steps for _, steps in ramp_stages(schedule))
    assert global_batch_at(schedule, ramp_steps + 1) == schedule.global_batch


@given(schedules())
def test_a_ramp_lasts_about_as_long_as_it_says(schedule: Schedule) -> None:
    ramp = schedule.batch_ramp
    assume(ramp is not None and ramp.start < schedule.global_batch)
    assert ramp is not None
    steps = sum(steps for _, steps in ramp_stages(schedule))
    # Each plateau is rounded to whole steps, at least one.
    slack = sum(batch for batch, _ in ramp_stages(schedule))
    assert abs(sequences_at(schedule, steps) - ramp.sequences) <= slack


@given(schedules(), st.integers(1, 300))
def test_the_divisor_divides_every_batch(schedule: Schedule, step: int) -> None:
    assert global_batch_at(schedule, step) % batch_divisor(schedule) == 0


@given(schedules(), st.integers(1, 40), st.integers(1, 16))
def test_a_batch_is_refused_exactly_when_some_step_cannot_be_split(
    schedule: Schedule, world: int, micro: int
) -> None:
    batches = {schedule.global_batch, *(batch for batch, _ in ramp_stages(schedule))}
    splits = all(batch % (world * micro) == 0 for batch in batches)
    config = with_batch(schedule, micro)
    if splits:
        check_batch(config, world)
        return
    with pytest.raises(UmbelError) as caught:
        check_batch(config, world)
    fix = str(caught.value.fix)
    worlds = numbers(fix, "processes: ")
    assert bool(worlds) == ("processes" in fix)
    for other in worlds:
        check_batch(config, other)
    if caught.value.where == "schedule.global_batch":
        nearest = numbers(fix, "nearest that are: ")
        assert nearest
        assert all(number % (world * micro) == 0 and number > 0 for number in nearest)
        assert all(abs(number - schedule.global_batch) < world * micro for number in nearest)


def numbers(text: str, after: str) -> list[int]:
    """The numbers that a message lists after some words."""
    part = text.partition(after)[2].partition(";")[0]
    return [int(number) for number in re.findall(r"\d+", part)]


@given(st.integers(1, 512), st.integers(1, 8), st.integers(1, 8), st.integers(1, 16))
def test_micro_batch_accumulation_and_world_make_the_batch(
    batch: int, world: int, micro: int, accumulation: int
) -> None:
    assume(batch % (world * micro) == 0)
    config = with_batch(Schedule(global_batch=batch), micro, accumulation)
    if micro * accumulation * world == batch:
        check_batch(config, world)
        return
    with pytest.raises(UmbelError, match="accumulation") as caught:
        check_batch(config, world)
    (offered,) = numbers(str(caught.value.fix), "set it to ")
    check_batch(with_batch(Schedule(global_batch=batch), micro, offered), world)


def test_an_auto_micro_batch_can_fill_any_accumulation_that_divides() -> None:
    check_batch(with_batch(Schedule(global_batch=64), accumulation=8), world_size=2)
    with pytest.raises(UmbelError, match="accumulation 3"):
        check_batch(with_batch(Schedule(global_batch=64), accumulation=3), world_size=2)
    with pytest.raises(UmbelError, match="micro_batch 2 × accumulation 8 × 2 processes"):
        check_batch(with_batch(Schedule(global_batch=64), accumulation=8), world_size=2, micro_batch=2)


def test_accumulation_cannot_be_fixed_while_the_batch_ramps() -> None:
    ramp = BatchRamp(start=8, increment=8, sequences=100)
    with pytest.raises(UmbelError, match="while the batch ramps"):
        check_batch(with_batch(Schedule(global_batch=64, batch_ramp=ramp), 4, 2), world_size=2)
