"""The state of a plain PyTorch model and AdamW. Every replica holds all of it; each owns an even share."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from train.state import LossScaler, Slice, adam_state, frozen_share, part, share


class TorchState:
    """State of a replica: one of ``world_size`` that hold the same."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int, world_size: int
    ) -> None:
        self.model, self.optimizer, self.rank, self.world_size = model, optimizer, rank, world_size

    def owned(self) -> Iterator[Slice]:
        """This replica's share of every parameter: what it saves."""
        return self._slices(self.rank, self.world_size)

    def held(self) -> Iterator[Slice]:
        """Every parameter: what it must be given."""
        return self._slices(0, 1)

    def group_steps(self) -> list[int]:
        return [int(self._state(group["params"][0])["step"]) for group in self.optimizer.param_groups]

    def loss_scaler(self) -> None:
        return None

    def loaded(self, group_steps: list[int], loss_scaler: LossScaler | None = None) -> None:
        del loss_scaler  # bf16 and fp32 need none
        for group, step in zip(self.optimizer.param_groups, group_steps, strict=True):
            for parameter in group["params"]:
                self._state(parameter)["step"].fill_(step)

    def _slices(self, rank: int, world_size: int) -> Iterator[Slice]:
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                yield from frozen_share(name, parameter, rank, world_size)
                continue
            offset, numel = share(parameter.numel(), rank, world_size)
            if numel:
                yield Slice(name, offset, part(parameter, self._state(parameter), offset, numel))

    def _state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        return adam_state(self.optimizer, parameter)
