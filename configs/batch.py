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
    micro = micro_batch or (1 if parallelism.micro_batch == "auto" else parallelism.micro_batch)
    unit = world_size * micro
    for batch in (schedule.global_batch, *(batch for batch, _ in ramp_stages(schedule))):
        if batch % unit:
            below, above = batch // unit * unit, (batch // unit + 1) * unit
            nearest = " or ".join(str(number) for number in (below, above) if number)
            worlds = [world for world in range(1, batch + 1) if batch % (world * micro) == 0]
            near = sorted(sorted(worlds, key=lambda world: abs(world - world_size))[:3])
            raise UmbelError(
                f"{batch} is not divisible by {world_size} processes × micro_batch {micro} = {unit}",
                where="schedule.global_batch",
                fix=f"nearest that are: {nearest}; or processes: {', '.join(map(str, near)) or 'none'}",
            )
    accumulation = parallelism.accumulation
    if accumulation is not None and parallelism.micro_batch != "auto":
        product = micro * accumulation * world_size
        if schedule.batch_ramp is not None:
            raise UmbelError(
                "cannot be fixed while the batch ramps",
                where="parallelism.accumulation",
                fix="leave it null: it follows global_batch",
            )
        if product != schedule.global_batch:
            raise UmbelError(
                f"micro_batch {micro} × accumulation {accumulation} × {world_size} processes = {product}, "
                f"but schedule.global_batch is {schedule.global_batch}",
                where="parallelism.accumulation",
                fix=f"set it to {schedule.global_batch // unit}, or to null",
            )
