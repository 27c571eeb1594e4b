"""A checkpoint of another trainer, whichever it was: the form that all readers give and one writer takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from base.errors import UmbelError
from checkpoint.format import Damaged
from train.importing.stored import Parts
from train.state import EXP_AVG, EXP_AVG_SQ

MOMENTS = (EXP_AVG, EXP_AVG_SQ)


@dataclass(frozen=True, kw_only=True)
class Group:
    """A parameter group of the optimizer: its members, their count of updates, its rule."""

    names: list[str]
    step: int
    rule: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was found, by the names its files use; no tensor is read yet.

    Args:
        kind: what it is, in words.
        files: all that was read.
        step: optimizer steps so far; None where the files do not say.
        samples: sequences so far, likewise.
        weights: every parameter, trained or frozen, in the best precision that was saved; perhaps buffers.
        moments: by kind and name; empty where there are weights alone, or before the first update.
        groups: of what trained; empty where there are weights alone.
        tied: other names of parameters, each with the one it is stored under.
        confined: what the process that opened pickles could give up.
    """

    kind: str
    files: list[Path]
    step: int | None = None
    samples: int | None = None
    weights: Mapping[str, Parts]
    moments: Mapping[str, Mapping[str, Parts]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    buffers: Mapping[str, Parts] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    loss_scaler: dict[str, float] | None = None
    confined: dict[str, bool] = field(default_factory=dict)


def rule_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a torch parameter group says of its update, the learning rate it had among it."""
    return {key: value for key, value in group.items() if key not in ("params", "names", "param_names")}


def step_of(states: list[Mapping[str, Any]], group: Mapping[str, Any], default: int) -> int:
    """How often a group was updated: its members' counter, the group's own, or the run's.

    Raises:
        Damaged: the members disagree.
    """
    told = {_number(state["step"]) for state in states if "step" in state}
    if len(told) > 1:
        raise Damaged(f"counts {min(told)} and {max(told)} updates in one parameter group")
    # FusedAdam leaves the group's own counter at 0.
    return told.pop() if told else _number(group.get("step") or default)


def check_adam(state: Mapping[str, Any], where: Path) -> None:
    """Refuse the state of an optimizer that Umbel does not have.

    Raises:
        UmbelError: it keeps something else than Adam's two moments.
    """
    keys = set(state) - {"step"}
    if keys and keys != set(MOMENTS):
        raise UmbelError(
            f"its optimizer keeps {', '.join(sorted(keys))}, not AdamW's {' and '.join(MOMENTS)}",
            where=str(where),
            fix="import its weights alone, from a Transformers folder",
        )


def _number(value: Any) -> int:
    """A counter, which may have been a tensor of one element."""
    if isinstance(value, dict):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise Damaged(f"counts {value!r} updates of its optimizer")
    return int(value)
