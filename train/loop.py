"""The loop. What a step is stands in the engine; what happens beside it, in the hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from configs.batch import global_batch_at
from configs.schema import RunConfig
from data.stream import BatchStream, MicroBatch, Share
from data.streaming.lanes import Cursors
from train.distributed import World
from train.engine import Engine, StepMetrics
from train.heartbeat import Pulse, Silent
from train.position import Position
from train.schedule import learning_rate
from train.stop import StopRequest


@dataclass(frozen=True)
class StepRecord:
    """One step as the hooks see it. ``metrics`` stay on the device until a hook reads them."""

    position: Position
    tokens: int  # computed in the global batch, learned from or not
    lr: float
    metrics: StepMetrics
    began: float  # time.perf_counter at its start
    data_wait: float  # seconds
    cursors: Cursors | None = None  # where this process's lanes stand after it; None in prepared mode
    save: bool = False  # the state after it is to be saved; all processes agree


class Hook(Protocol):
    """Work beside the steps. Called on every process, in the same order."""

    def after_step(self, record: StepRecord) -> None: ...


@dataclass
class Loop:
    """What the steps of one start have in common."""

    config: RunConfig
    world: World
    engine: Engine
    stream: BatchStream
    micro_batch: int
    stop: StopRequest
    due: Callable[[int], bool]  # whether the state after a step is to be saved; asked on the first process
    hooks: Sequence[Hook]
    pulse: Pulse = field(default_factory=Silent)

    def run(self, position: Position, cursors: Cursors | None, last_step: int) -> Position:
        """Train to ``last_step``, or until all processes agree to stop; returns where it ended.

        ``cursors`` are those of `StepRecord` at ``position``, of all processes.
        """
        config, world, pulse = self.config, self.world, self.pulse
        steps = range(position.step + 1, last_step + 1)
        share = Share(world.rank, world.size, self.micro_batch)
        with self.stream.read(steps, share, cursors) as prefetched:
            for step, batches, after in prefetched:
                began = time.perf_counter() - prefetched.data_wait
                due = world.is_first and self.due(step)
                pulse.step(step)
                flags = self.stop.pending(), due, pulse.due()
                stops, save, probe, targets, tokens = world.sum([*flags, *counts(batches)])
                pulse.met(probe)
                if stops:
                    break
                lr = learning_rate(config.schedule, config.optimizer.lr, step)
                metrics = self.engine.step(step, batches, targets, lr)
                position = position.after(global_batch_at(config.schedule, step), targets)
                waited = prefetched.data_wait
                record = StepRecord(position, tokens, lr, metrics, began, waited, after, save > 0)
                for hook in self.hooks:
                    hook.after_step(record)
        return position


def counts(batches: Sequence[MicroBatch]) -> tuple[int, int]:
    """Target tokens of some micro-batches, and all tokens."""
    return sum(batch.targets for batch in batches), sum(batch.input_ids.size for batch in batches)
