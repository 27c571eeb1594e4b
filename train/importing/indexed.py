"""Optimizer state by number, as torch.optim saves it: which parameter is each one's?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import nn

from base.errors import UmbelError
from configs.schema import Optimizer
from train.importing.match import Names
from train.importing.pickles import Unpickled
from train.importing.source import MOMENTS, Group, check_adam, rule_of, step_of
from train.importing.stored import Parts
from train.parameters import parameter_groups


class Expected(NamedTuple):
    """What the run is to be: its model, on the meta device, and its optimizer."""

    model: nn.Module
    optimizer: Optimizer


class Numbered(NamedTuple):
    """A torch optimizer's ``state_dict`` with the names of its parameters."""

    groups: list[Group]
    moments: dict[str, dict[str, Parts]]


def numbered(
    saved: Mapping[str, Any], file: Unpickled, expected: Expected, present: Collection[str], steps: int
) -> Numbered:
    """Groups, and moments by kind and name. A member without state never trained, and is left out.

    Args:
        saved: ``param_groups`` and ``state``.
        present: the names that the source uses for its weights, and that are used here.
        steps: of the run, where the optimizer does not count its own.

    Raises:
        UmbelError: nothing tells which state is whose, or it is not Adam's.
    """
    states = saved["state"]
    groups: list[Group] = []
    moments: dict[str, dict[str, Parts]] = {kind: {} for kind in MOMENTS}
    known = Names(expected.model, present)
    theirs = {known.own(name): name for name in present}
    for group, members in zip(saved["param_groups"], member_names(saved, file, expected), strict=True):
        names = [theirs.get(known.own(name), name) for name in members]
        by_name = {
            name: states.get(str(number), {}) for name, number in zip(names, group["params"], strict=True)
        }
        held = {name: state for name, state in by_name.items() if state}
        for name, state in held.items():
            check_adam(state, file.path)
            for kind in MOMENTS:
                moments[kind][name] = Parts.whole(file.tensor(state[kind]))
        step = step_of(list(held.values()), group, steps if held else 0)
        groups.append(Group(names=list(held) or names, step=step, rule=rule_of(group)))
    return Numbered(groups, moments)


def member_names(saved: Mapping[str, Any], file: Unpickled, expected: Expected) -> list[list[str]]:
    """The parameters of each group, in the order of their numbers.

    Either the groups say so themselves, or they are what this run's optimizer would make of this run's model:
    as many groups, as many members, each with moments of its shape.

    Raises:
        UmbelError: neither.
    """
    groups = saved["param_groups"]
    for key in ("param_names", "names"):
        if all(_are_names(group.get(key), len(group["params"])) for group in groups):
            return [list(group[key]) for group in groups]
    for names in _guesses(expected):
        if _fits(names, saved, file, expected.model):
            return names
    sizes = " and ".join(str(len(group["params"])) for group in groups)
    raise UmbelError(
        f"its optimizer numbers its parameters, in groups of {sizes}, and this run's would not be those",
        where=str(file.path),
        fix="set optimizer.decay_embeddings and optimizer.decay_norms, and the model, as it was trained",
    )


def _are_names(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(name, str) for name in value)


def _guesses(expected: Expected) -> list[list[list[str]]]:
    every = list(expected.model.named_parameters())
    return [
        [group["names"] for group in parameter_groups(expected.model, expected.optimizer)],
        [[name for name, parameter in every if parameter.requires_grad]],
        [[name for name, _ in every]],
    ]


def _fits(names: list[list[str]], saved: Mapping[str, Any], file: Unpickled, model: nn.Module) -> bool:
    groups = saved["param_groups"]
    if [len(members) for members in names] != [len(group["params"]) for group in groups]:
        return False
    return all(
        file.tensor(saved["state"][str(number)][MOMENTS[0]]).shape == tuple(model.get_parameter(name).shape)
        for members, group in zip(names, groups, strict=True)
        for name, number in zip(members, group["params"], strict=True)
        if MOMENTS[0] in saved["state"].get(str(number), {})
    )
