"""One step, whatever runs it: the same loss, clipping and update on one process or a thousand."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from base.errors import UmbelError
from configs.schema import Optimizer, RunConfig
from data.stream import MicroBatch
from train.distributed import World
from train.loss import cross_entropy_sum
from train.parameters import parameter_groups
from train.seeds import seed_draws
from train.state import State


class StepMetrics(NamedTuple):
    """What one step measured. On the device: reading it is the hooks' choice."""

    loss: torch.Tensor  # this process's part; the parts add up to nats per target token
    grad_norm: torch.Tensor  # global L2 norm before clipping


class Engine(abc.ABC):
    """A model, its optimizer, and the way both are spread over processes.

    Attributes:
        model: the Transformers model (possibly with adapters), with its own parameter names.
        optimizer: the torch optimizer whose param_groups carry the learning rate.
        state: master weights and moments, by parameter name.
        before_update: called when an update is about to write to the state, which nothing else does.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    state: State

    def __init__(self, config: RunConfig, world: World) -> None:
        self.config, self.world = config, world
        self.before_update: Callable[[], object] = lambda: None

    def step(self, step: int, batches: list[MicroBatch], targets: int, lr: float) -> StepMetrics:
        """Forward, backward and update on this process's micro-batches of 1-based step ``step``.

        ``targets`` is the global count of target tokens of the step, over all processes.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total = torch.zeros((), device=self.world.device)
        for index, batch in enumerate(batches):
            seed_draws(self.config.run.seed, step, batch.first_slot)
            last = index == len(batches) - 1
            with self.accumulating(last):
                loss = self.loss_sum(batch) / max(1, targets)
                # Data parallelism averages gradients over processes; the loss is a sum over them.
                self.backward(loss * self.world.size)
            total += loss.detach()
        self.before_update()
        return StepMetrics(total, self.update())

    def loss_sum(self, batch: MicroBatch) -> torch.Tensor:
        """Summed cross-entropy of a micro-batch, in nats."""
        position_ids = None if batch.position_ids is None else self._to_device(batch.position_ids)
        logits = self.forward(self._to_device(batch.input_ids), position_ids)
        return cross_entropy_sum(logits, self._to_device(batch.labels))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[MicroBatch]) -> tuple[float, int]:
        """Summed loss and count of targets over this process's share of ``batches``.

        Every process must be handed equally many batches: under ZeRO-3 a forward pass is collective.
        """
        self.model.eval()
        total, count = torch.zeros((), dtype=torch.float64, device=self.world.device), 0
        for batch in batches:
            total += self.loss_sum(batch)
            count += batch.targets
        self.model.train()
        return float(total), count

    def _to_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.world.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.world.device, non_blocking=True)

    @abc.abstractmethod
    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [batch, sequence, vocabulary] of input_ids [batch, sequence] (`train.masking.logits_of`)."""

    @abc.abstractmethod
    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around one micro-batch: gradients are reduced over processes at the last one only."""

    @abc.abstractmethod
    def backward(self, loss: torch.Tensor) -> None: ...

    @abc.abstractmethod
    def update(self) -> torch.Tensor:
        """Clip, update, zero the gradients; returns the gradient norm before clipping."""


def adamw(model: nn.Module, optimizer: Optimizer) -> torch.optim.AdamW:
    groups = parameter_groups(model, optimizer)
    fused = True if optimizer.fused is None else optimizer.fused
    betas = (optimizer.betas[0], optimizer.betas[1])
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=betas, eps=optimizer.eps, fused=fused)


def round_weights(model: nn.Module) -> None:
    """Start from weights that bf16 can hold, as ZeRO does: every stage then starts from the same numbers."""
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.bfloat16())


def build_engine(config: RunConfig, world: World, micro_batch: int) -> Engine:
    """The engine that ``parallelism`` asks for.

    Raises:
        UmbelError: the model cannot be built, or its attention does not train on this device.
    """
    if config.model.attention == "flex_attention" and world.device.type == "cpu":
        raise UmbelError(
            "has no backward pass on the CPU", where="model.attention=flex_attention", fix="set it to sdpa"
        )
    if config.parallelism.engine == "deepspeed":
        from train.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(config, world, micro_batch)
    from train.torch_engine import TorchEngine

    return TorchEngine(config, world)
