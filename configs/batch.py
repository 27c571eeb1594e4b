"""The arithmetic of a step: global_batch = micro_batch × accumulation × world_size."""

from __future__ import annotations

from math import gcd

from base.errors import UmbelError
from configs.schema import RunConfig, Schedule


def global_batch_at(schedule: Schedule, step: int) -> int:
    """Sequences consumed by 1-based step ``step``."""
    return sequences_at(schedule, step) - sequences_at(schedule, step - 1)


def sequences_at(schedule: Schedule, step: int) -> int:
    """Sequences consumed by the first ``step`` steps: n(s), where step s + 1 begins.

    With a ramp the batch grows from ``start`` by ``increment`` each ``sequences × increment /
    (global_batch − start)`` sequences, as Megatron-LM's ``--rampup-batch-size`` does.
    """
    total = 0
    for batch, steps in ramp_stages(schedule):
        if step <= steps:
            return total + step * batch
        total, step = total + steps * batch, step - steps
    return total + step * schedule.global_batch


def ramp_stages(schedule: Schedule) -> list[tuple[int, int]]:
    """The (batch, steps) plateaus before ``global_batch`` is reached; empty without a ramp."""
    ramp = schedule.batch_ramp
    if ramp is None:
        return []
    batches = range(ramp.start, schedule.global_batch, ramp.increment)
    per_stage = ramp.sequences / max(1, len(batches))
    return [(batch, max(1, round(per_stage / batch))) for batch in batches]


def batch_divisor(schedule: Schedule) -> int:
    """The largest number that divides every global batch of the run."""
    return gcd(schedule.global_batch, *(batch for batch, _ in ramp_stages(schedule)))


def check_batch(config: RunConfig, world_size: int, micro_batch: int = 0) -> None:
    """Refuse a batch that cannot be split evenly, and say which nearest ones can.

    ``micro_batch`` is the resolved one; 0 takes the config's (1 where that is ``auto``).

    Raises:
        UmbelError: not divisible, or micro_batch × accumulation × world_size ≠ global_batch.
    """
    parallelism, schedule = config.parallelism, config.schedule
    if not micro_batch and parallelism.micro_batch != "auto":
        micro_batch = parallelism.micro_batch
    _check_divisible(schedule, world_size, micro_batch or 1)
    if parallelism.accumulation is not None:
        _check_accumulation(schedule, world_size, micro_batch, parallelism.accumulation)


def _check_divisible(schedule: Schedule, world_size: int, micro_batch: int) -> None:
    unit, batch, ramp = world_size * micro_batch, schedule.global_batch, schedule.batch_ramp
    split = f"divisible by {world_size} processes × micro_batch {micro_batch} = {unit}"
    worlds = _nearest_worlds(batch_divisor(schedule), micro_batch, world_size)
    or_worlds = f"; or processes: {worlds}" if worlds else ""
    if batch % unit:
        nearest = " or ".join(
            str(number) for number in (batch // unit * unit, (batch // unit + 1) * unit) if number
        )
        raise UmbelError(
            f"{batch} is not {split}",
            where="schedule.global_batch",
            fix=f"nearest that are: {nearest}{or_worlds}",
        )
    if ramp is not None and batch_divisor(schedule) % unit:
        raise UmbelError(
            f"start {ramp.start} and increment {ramp.increment} are not both {split}",
            where="schedule.batch_ramp",
            fix=f"take multiples of {unit}{or_worlds}",
        )


def _check_accumulation(schedule: Schedule, world_size: int, micro_batch: int, accumulation: int) -> None:
    where, batch, product = "parallelism.accumulation", schedule.global_batch, accumulation * world_size
    if schedule.batch_ramp is not None:
        raise UmbelError(
            "cannot be fixed while the batch ramps", where=where, fix="leave it null: it follows global_batch"
        )
    # An auto micro_batch can fill up any product that divides the batch.
    if (micro_batch and micro_batch * product != batch) or batch % product:
        raise UmbelError(
            f"micro_batch {micro_batch or 'auto'} × accumulation {accumulation} × {world_size} processes "
            f"cannot be schedule.global_batch = {batch}",
            where=where,
            fix=f"set it to {batch // (world_size * (micro_batch or 1))}, or to null",
        )


def _nearest_worlds(divisor: int, micro_batch: int, wanted: int) -> str:
    """The three world sizes nearest to ``wanted`` that split ``divisor`` sequences evenly."""
    worlds = [world for world in range(1, divisor // micro_batch + 1) if divisor % (world * micro_batch) == 0]
    nearest = sorted(worlds, key=lambda world: abs(world - wanted))[:3]
    return ", ".join(map(str, sorted(nearest)))
