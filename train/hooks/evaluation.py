"""Held-out loss of each source, in nats per token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch

from data.stream import IGNORED, BatchStream, MicroBatch
from train.distributed import World
from train.engine import Engine
from train.loop import StepRecord

AT_ONCE = 8
"""Micro-batches of each process between two looks at whether the run is to stop."""


class Scorer(Protocol):
    """A model as evaluation sees it: an engine, or a plain model (`train.evaluate`)."""

    def evaluate(self, batches: Iterable[MicroBatch]) -> tuple[float, int]:
        """Summed loss in nats, and count of targets."""


class Evaluation:
    """Evaluates every ``every`` steps (0: never); ``tell`` is called on rank 0 with step and losses.

    Where all processes agree to stop (``stopping``, collective), it leaves off and tells nothing.
    """

    def __init__(
        self, engine: Engine, stream: BatchStream, world: World, every: int, sequences: int, micro_batch: int,
        tell: Callable[[int, dict[str, float]], None], stopping: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.engine, self.stream, self.world, self.every = engine, stream, world, every
        self.sequences, self.micro_batch, self.tell, self.stopping = sequences, micro_batch, tell, stopping

    def after_step(self, record: StepRecord) -> None:
        if self.every and record.position.step % self.every == 0:
            losses = held_out_losses(
                self.engine, self.stream, self.world, self.sequences, self.micro_batch, self.stopping
            )
            if self.world.is_first and losses:
                self.tell(record.position.step, losses)


def held_out_losses(
    scorer: Scorer, stream: BatchStream, world: World, sequences: int, micro_batch: int,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float]:  # fmt: skip
    """Nats per target token on the first held-out sequences of each source that has any. Collective.

    Empty where it was left early: all processes agreed, by ``stopping``, to stop.
    """
    losses = {}
    for source in stream.prepared.sources:
        share = _share(stream.held_out(source, sequences, micro_batch), world)
        total, count = 0.0, 0
        for first in range(0, len(share), AT_ONCE):
            if stopping():
                return {}
            part, targets = scorer.evaluate(share[first : first + AT_ONCE])
            total, count = total + part, count + targets
        sums = world.sum_floats(torch.tensor([total, count], dtype=torch.float64)).tolist()
        if sums[1]:
            losses[source] = sums[0] / sums[1]
    return losses


def _share(batches: list[MicroBatch], world: World) -> list[MicroBatch]:
    """This process's batches; all get equally many, for a forward pass may be collective."""
    while len(batches) % world.size:
        batches = [*batches, _blank(batches[0])]
    return batches[world.rank :: world.size]


def _blank(batch: MicroBatch) -> MicroBatch:
    """The same shape of work, with nothing to count."""
    return dataclasses.replace(batch, labels=np.full_like(batch.labels, IGNORED), targets=0)
