"""Initial weights as a function of the seed alone: the same for every ZeRO stage, world size and device.

Each module draws from a generator seeded by (seed, its qualified name), so neither the order in which modules
are built nor what was drawn before matters. What is drawn is the architecture's own: Transformers'
``_init_weights``, called children first as ``PreTrainedModel.initialize_weights`` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn
from transformers import PreTrainedModel

from base.errors import UmbelError
from train.seeds import derive

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[object]]

Member = tuple[str, nn.Module, PreTrainedModel]
"""Qualified name, module, and the model whose ``_init_weights`` applies to it."""

Unit = list[Member]
"""Modules filled together, children first."""


def initialize(model: PreTrainedModel, seed: int, gather: Gather | None = None) -> None:
    """Fill a model's weights in place, one transformer block or single module at a time.

    Args:
        model: from `train.model.build_skeleton`.
        seed: the run's.
        gather: opens a context in which the given parameters are whole; for ZeRO-3
            ``lambda parameters: deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)``.

    Numbers are drawn on the CPU in fp32 and copied to where the parameters are. The caller's random state is
    left as it was. Bit-equality holds on one kind of CPU; a run's processes all take rank 0's weights.

    Raises:
        UmbelError: the architecture leaves a parameter unset.
    """
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    with preserved_random_state(), torch.no_grad():
        for unit in _units(model, model, ""):
            named = _parameters_of(unit)
            own = {name: parameter for name, parameter in named.items() if first_names[id(parameter)] == name}
            tied = [parameter for name, parameter in named.items() if name not in own]
            whole = gather(list(own.values())) if gather and own else contextlib.nullcontext()
            with whole, _drawn_on_cpu(own), _left_alone(tied):
                _fill(unit, seed)


def _units(module: nn.Module, owner: PreTrainedModel, name: str) -> Iterator[Unit]:
    """Each transformer block (a child of a ModuleList) is one unit, each module outside of them another."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    for key, child in module.named_children():
        qualified = f"{name}.{key}" if name else key
        if isinstance(module, nn.ModuleList):
            yield list(_post_order(child, owner, qualified))
        else:
            yield from _units(child, owner, qualified)
    yield [(name, module, owner)]


def _post_order(module: nn.Module, owner: PreTrainedModel, name: str) -> Iterator[Member]:
    owner = module if isinstance(module, PreTrainedModel) else owner
    for key, child in module.named_children():
        yield from _post_order(child, owner, f"{name}.{key}")
    yield name, module, owner


def _parameters_of(unit: Unit) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{key}" if name else key: parameter
        for name, module, _ in unit
        for key, parameter in module.named_parameters(recurse=False)
    }


def _fill(unit: Unit, seed: int) -> None:
    for name, module, owner in unit:
        torch.default_generator.manual_seed(derive(seed, "weights", name))
        owner._init_weights(module)


@contextlib.contextmanager
def _drawn_on_cpu(parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Lend the parameters fp32 storage on the CPU, full of NaN, and copy what was drawn into their own."""
    homes = {name: parameter.data for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.data = torch.full(parameter.shape, torch.nan, dtype=torch.float32, device="cpu")
    yield
    for name, parameter in parameters.items():
        drawn, parameter.data = parameter.data, homes[name]
        if drawn.isnan().any():
            raise UmbelError(f"Transformers has no initial weights for {name}", where="model.arch")
        parameter.data.copy_(drawn)


@contextlib.contextmanager
def _left_alone(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Keep Transformers off weights that were filled under their first name (a tied output head)."""
    for parameter in parameters:
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    yield
    for parameter in parameters:
        del parameter._is_hf_initialized  # type: ignore[attr-defined]


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave the CPU's random state as it was."""
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
