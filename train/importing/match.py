"""Is what was found the state of this run's model? Names made equal, every difference told."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cached_property

import torch
from torch import nn

from base.errors import UmbelError
from train.facts import tied
from train.importing.source import Source
from train.importing.stored import Parts
from train.state import persistent_buffers

_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.")
"""What DistributedDataParallel, torch.compile and Fabric put before names."""

_SHOWN = 3


class Names:
    """The names of a model's state, and what another trainer may call it.

    Args:
        present: all names that the source uses for weights.
    """

    def __init__(self, model: nn.Module, present: Iterable[str]) -> None:
        self.model = model
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.buffers = {name: tuple(buffer.shape) for name, buffer in persistent_buffers(model)}
        self.tied = tied(model, with_frozen=True)
        self.present = {self._unwrapped(name) for name in present}

    def own(self, name: str) -> str:
        """The model's name for what the source calls ``name``."""
        name = self._unwrapped(name)
        first = self.tied.get(name, name)
        return name if first in self.present else first

    def _unwrapped(self, name: str) -> str:
        while name not in self.known and name.startswith(_WRAPPERS):
            name = name[name.index(".") + 1 :]
        prefixed = f"{getattr(self.model, 'base_model_prefix', '')}.{name}"
        # A checkpoint of the model without its head.
        return prefixed if name not in self.known and prefixed in self.known else name

    @cached_property
    def known(self) -> set[str]:
        return {*self.shapes, *self.buffers, *self.tied}

    @cached_property
    def _ignored(self) -> list[re.Pattern[str]]:
        patterns = getattr(self.model, "_keys_to_ignore_on_load_unexpected", None) or ()
        return [re.compile(pattern) for pattern in patterns]

    def counts(self, name: str) -> bool:
        """Whether it is a parameter, or nothing known: Transformers, too, passes by some old entries."""
        if name in self.buffers or name in self.tied:
            return False
        return name in self.shapes or not any(pattern.search(name) for pattern in self._ignored)


def match(source: Source, model: nn.Module, *, base: bool, where: str) -> Source:
    """The source by the model's own names, and with nothing but the model's parameters and buffers.

    Args:
        model: of the run, on the meta device.
        base: whether a pretrained base gives the frozen weights, so that the source need not.

    Raises:
        UmbelError: parameters that are missing, unexpected, of another shape, or frozen on one side only.
    """
    names = Names(model, source.weights)
    found = _renamed(source.weights, names)
    _check_tied(found, names, where)
    buffers = _only(found | _renamed(source.buffers, names), names.buffers)
    weights = {name: parts for name, parts in found.items() if names.counts(name)}
    groups = [
        dataclasses.replace(group, names=[names.own(name) for name in group.names]) for group in source.groups
    ]
    moments = {kind: _renamed(parts, names) for kind, parts in source.moments.items()}
    made = dataclasses.replace(source, weights=weights, buffers=buffers, moments=moments, groups=groups)
    if told := "; ".join(_differences(made, names, base)):
        raise UmbelError(f"is the state of another model: {told}", where=where, fix=_FIX)
    return made


def _differences(source: Source, names: Names, base: bool) -> Iterator[str]:
    weights, shapes = set(source.weights), names.shapes
    trained = {name for group in source.groups for name in group.names} if source.groups else names.trained
    needed = names.trained if base else set(shapes)
    wrong = _misshapen(source.weights, shapes) + _misshapen(source.buffers, names.buffers)
    for found in source.moments.values():
        wrong += _misshapen(found, shapes)
    for what, which in {
        "missing": sorted((needed - weights) | (names.buffers.keys() - source.buffers.keys())),
        "unexpected": sorted((weights | trained) - set(shapes)),
        "of another shape": wrong,
        "trained there, frozen here": sorted(trained & set(shapes) - names.trained),
        "frozen there, trained here": sorted((names.trained & weights) - trained),
    }.items():
        if which:
            more = ", …" if len(which) > _SHOWN else ""
            yield f"{len(which)} {what} ({', '.join(which[:_SHOWN])}{more})"


def _check_tied(found: Mapping[str, Parts], names: Names, where: str) -> None:
    for name, first in names.tied.items():
        if name in found and not _equal(found[name], found[first]):
            raise UmbelError(
                f"{name} is a tensor of its own, the model ties it to {first}",
                where=where,
                fix="set model.config.tie_word_embeddings=false" if "head" in name else None,
            )


_FIX = "give the model it was trained with (model=…, model.config.…, model.lora), and keep its names"


def _renamed(tensors: Mapping[str, Parts], names: Names) -> dict[str, Parts]:
    made = {names.own(name): parts for name, parts in tensors.items()}
    if len(made) != len(tensors):
        raise UmbelError("holds a parameter under two names that mean the same")
    return made


def _only(tensors: Mapping[str, Parts], wanted: Container[str]) -> dict[str, Parts]:
    return {name: parts for name, parts in tensors.items() if name in wanted}


def _equal(one: Parts, other: Parts) -> bool:
    return one == other or (one.shape == other.shape and torch.equal(one.read(), other.read()))


def _misshapen(found: Mapping[str, Parts], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    told = []
    for name, parts in sorted(found.items()):
        if name in shapes and parts.shape != shapes[name]:
            told.append(f"{name} ({list(parts.shape)}, here {list(shapes[name])})")
        elif name in shapes and not parts.is_whole:
            told.append(f"{name} (not all of its elements, or some twice)")
    return told
