"""The loop. What a step is stands in the engine; what happens beside it, in the hooks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from configs.schema import RunConfig
from data.stream import BatchStream
from train.distributed import World
from train.engine import Engine, StepMetrics
from train.saving import Position
from train.schedule import learning_rate
from train.stop import StopRequest


@dataclass(frozen=True)
class StepRecord:
    """One step as the hooks see it. ``metrics`` stay on the device until a hook reads them."""

    position: Position
    targets: int  # of the global batch
    lr: float
    metrics: StepMetrics
    began: float  # time.perf_counter at its start
    data_wait: float  # seconds


class Hook(Protocol):
    """Work beside the steps. Called on every process, in the same order."""

    def after_step(self, record: StepRecord) -> None: ...


def train(
    config: RunConfig,
    engine: Engine,
    stream: BatchStream,
    world: World,
    position: Position,
    micro_batch: int,
    last_step: int,
    stop: StopRequest,
    hooks: Sequence[Hook],
) -> Position:
    """Train to ``last_step``, or until all processes agree to stop; returns the position where it ended."""
    steps = range(position.step + 1, last_step + 1)
    with stream.prefetch(steps, world.rank, world.size, micro_batch) as prefetched:
        for step, batches in zip(steps, prefetched, strict=False):
            began = time.perf_counter() - prefetched.data_wait
            stops, targets = world.sum([stop.pending(), sum(batch.targets for batch in batches)])
            if stops:
                break
            lr = learning_rate(config.schedule, config.optimizer.lr, step)
            metrics = engine.step(step, batches, targets, lr)
            position = position.after(len(stream.slots(step)), targets)
            record = StepRecord(position, targets, lr, metrics, began, prefetched.data_wait)
            for hook in hooks:
                hook.after_step(record)
    return position
