"""Plain PyTorch: one process, or DistributedDataParallel over several. Also ZeRO stage 0."""

from __future__ import annotations

import contextlib

import torch
from torch.nn.parallel import DistributedDataParallel

from configs.schema import RunConfig
from train.distributed import World
from train.engine import Engine, adamw, round_weights
from train.masking import logits_of
from train.model import build_model
from train.torch_state import TorchState


class TorchEngine(Engine):
    """fp32 weights are their own master copy; bf16 is autocast, so gradients and reduction stay in fp32."""

    def __init__(self, config: RunConfig, world: World) -> None:
        super().__init__(config, world)
        self.model = build_model(config.model, config.run.seed).to(world.device)
        if config.model.precision == "bf16":
            round_weights(self.model)
        self.optimizer = adamw(self.model, config.optimizer)
        self.state = TorchState(self.model, self.optimizer, world.rank, world.size)
        self.trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.replica: torch.nn.Module = self.model
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.replica = DistributedDataParallel(
                self.model, device_ids=devices, gradient_as_bucket_view=True
            )
            self._settle_buckets()
        if config.model.compile:
            self.model.compile()

    def _settle_buckets(self) -> None:
        """Have DistributedDataParallel lay its buckets before the first step, not after it.

        It lays them anew in the order of a first backward pass, and the place in a bucket decides in which
        order summands are added: the first step of each start would round differently from the others.
        """
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.world.device)
        for _ in range(2):
            (self.forward(token).sum() * 0).backward()
        self.optimizer.zero_grad()

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        # Without gradients the wrapper would only broadcast buffers that never change.
        model = self.replica if torch.is_grad_enabled() else self.model
        with torch.autocast(
            self.world.device.type, torch.bfloat16, enabled=self.config.model.precision == "bf16"
        ):
            return logits_of(model, input_ids, position_ids)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.replica, DistributedDataParallel) and not last:
            return self.replica.no_sync()
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def update(self) -> torch.Tensor:
        grads = [parameter.grad for parameter in self.trainable if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if self.config.optimizer.clip_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.trainable, self.config.optimizer.clip_grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm
