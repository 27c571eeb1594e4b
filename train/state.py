"""What an engine holds, as slices of named parameters: the one view that saving and loading share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

MASTER, EXP_AVG, EXP_AVG_SQ, FROZEN = "master", "exp_avg", "exp_avg_sq", "frozen"


LossScaler = dict[str, float]
"""``cur_scale``, ``cur_iter``, ``last_overflow_iter``, ``cur_hysteresis`` of a dynamic loss scaler."""


class Slice(NamedTuple):
    """Elements [start, start + numel) of a flattened parameter that this process owns.

    ``views`` maps kinds to 1-D tensors *in the live state*: reading them is saving, writing them is loading.
    Of a trained parameter: master, exp_avg and exp_avg_sq in fp32. Of a frozen one: frozen, in its own dtype.
    """

    parameter: str
    start: int
    views: dict[str, torch.Tensor]


class State(Protocol):
    """Where an engine keeps master weights and moments."""

    def owned(self) -> Iterator[Slice]:
        """What this process saves. Over all processes the slices cover each parameter once, frozen or not.

        The views stay the same tensors for the engine's life, and only an update writes to them.
        """

    def held(self) -> Iterator[Slice]:
        """What this process must be given to go on."""

    def group_steps(self) -> list[int]:
        """The optimizer's step counter of each parameter group."""

    def loss_scaler(self) -> LossScaler | None:
        """Where fp16's dynamic loss scaler stands; None without one."""

    def loaded(self, group_steps: list[int], loss_scaler: LossScaler | None = None) -> None:
        """After every held slice was written: set the counters and bring the model's weights in line."""


def adam_state(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """The Adam state of a parameter, made as torch.optim.AdamW would make it before the first step."""
    state = optimizer.state[parameter]
    if "exp_avg" not in state:
        # A fused step on CUDA wants its counter on the device.
        fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        device = parameter.device if fused else torch.device("cpu")
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state


def part(
    flat: torch.Tensor, state: dict[str, torch.Tensor], offset: int, numel: int
) -> dict[str, torch.Tensor]:
    """The views of one slice inside a flat tensor and its moments."""
    tensors = {MASTER: flat.detach(), EXP_AVG: state["exp_avg"], EXP_AVG_SQ: state["exp_avg_sq"]}
    return {kind: tensor.view(-1).narrow(0, offset, numel) for kind, tensor in tensors.items()}


def share(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and length of an even contiguous share; the first shares take the remainder."""
    size, rest = divmod(numel, world_size)
    return rank * size + min(rank, rest), size + (rank < rest)


def frozen_share(name: str, parameter: torch.Tensor, rank: int, world_size: int) -> Iterator[Slice]:
    """One process's even share of a frozen parameter that each holds whole; none where it is empty."""
    start, numel = share(parameter.numel(), rank, world_size)
    if numel:
        yield Slice(name, start, {FROZEN: parameter.detach().view(-1).narrow(0, start, numel)})


def persistent_buffers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that belong to the model's state (running statistics, not rotary tables)."""
    wanted = model.state_dict(keep_vars=True).keys()
    for name, buffer in model.named_buffers():
        if name in wanted:
            yield name, buffer
