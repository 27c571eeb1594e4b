"""The micro-batch: as many sequences at a time as fit the memory, and what to do when not even one does."""

from __future__ import annotations

import dataclasses
import math

from base.errors import UmbelError
from base.files import human_bytes
from configs.batch import batch_divisor, check_batch
from configs.schema import RunConfig
from train.memory import USABLE, estimate, runs_on_cpu

CPU_MICRO_BATCH = 8
"""More sequences at once gain nothing on a CPU."""


def choose_micro_batch(config: RunConfig, world_size: int, memory_bytes: int) -> int:
    """The micro-batch of the config; where it is ``auto``, the largest that divides evenly and fits 90 %.

    Raises:
        UmbelError: the global batch cannot be split, or not even one sequence fits: says how much each part
            takes and which settings would help.
    """
    check_batch(config, world_size)
    asked, accumulation = config.parallelism.micro_batch, config.parallelism.accumulation
    if asked != "auto":
        return asked
    share = batch_divisor(config.schedule) // world_size
    if accumulation is not None:
        check_batch(config, world_size, max(1, share // accumulation))
        return max(1, share // accumulation)
    limit = CPU_MICRO_BATCH if runs_on_cpu(config) else share
    candidates = [number for number in range(1, min(share, limit) + 1) if share % number == 0]
    fitting = _last_that_fits(config, world_size, candidates, int(USABLE * memory_bytes))
    if fitting is None:
        raise too_large(config, world_size, memory_bytes)
    return fitting


def too_large(config: RunConfig, world_size: int, memory_bytes: int) -> UmbelError:
    """The error of a model of which not even one sequence fits, with settings that fit, gentlest first."""
    needed = estimate(config, world_size, 1)
    tries = [(text, estimate(other, world_size, 1).total) for text, other in _lighter(config, world_size)]
    fitting = [(text, total) for text, total in tries if total <= USABLE * memory_bytes]
    offers = ", ".join(f"{text} ({human_bytes(total)})" for text, total in fitting[:3])
    return UmbelError(
        f"too large for the memory: with one sequence at a time a process needs {human_bytes(needed.total)} "
        f"({needed.told()}); usable are {human_bytes(USABLE * memory_bytes)} of {human_bytes(memory_bytes)}",
        where="model",
        fix=f"try {offers}"
        if offers
        else "none of the lighter settings fits here: use devices with more memory or a smaller model",
    )


def _last_that_fits(config: RunConfig, world_size: int, candidates: list[int], memory: int) -> int | None:
    """The last of ascending candidates that fits, by bisection: memory only grows with the micro-batch."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if estimate(config, world_size, candidates[middle]).total <= memory:
            low = middle + 1
        else:
            high = middle
    return candidates[low - 1] if low else None


def _lighter(config: RunConfig, world_size: int) -> list[tuple[str, RunConfig]]:
    """Settings that take less memory, gentlest first."""
    model, parallelism, data = config.model, config.parallelism, config.data
    zero3 = dataclasses.replace(parallelism, engine="deepspeed", zero_stage=3)
    offloaded = dataclasses.replace(zero3, offload_optimizer=True, offload_parameters=True)
    shorter = max(2, data.sequence_length // 4)
    changes: list[tuple[str, RunConfig]] = []
    if not model.activation_checkpointing:
        checkpointed = dataclasses.replace(model, activation_checkpointing=True)
        changes.append(
            ("model.activation_checkpointing=true", dataclasses.replace(config, model=checkpointed))
        )
    if parallelism.zero_stage < 3 and world_size > 1:
        changes.append(("parallelism=zero3", dataclasses.replace(config, parallelism=zero3)))
    if not parallelism.offload_parameters:
        changes.append(("parallelism=zero3_offload", dataclasses.replace(config, parallelism=offloaded)))
    cut = dataclasses.replace(config, data=dataclasses.replace(data, sequence_length=shorter))
    changes.append((f"data.sequence_length={shorter}", cut))
    more = 2 ** math.ceil(math.log2(world_size + 1))
    spread = dataclasses.replace(config, parallelism=zero3)
    changes.append((f"parallelism=zero3 parallelism.processes={more}", spread))
    return changes
