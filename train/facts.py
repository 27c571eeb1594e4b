"""What a checkpoint says of itself besides its tensors, and when that forbids going on from it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from base.errors import UmbelError
from base.files import sha256_json
from configs.batch import sequences_at
from configs.compose import is_defining
from configs.plain import flatten, to_dict
from configs.schema import RunConfig, Schedule
from data.order.global_order import GlobalOrder
from train.engine import Engine
from train.portable import trainable_shapes

_HYPERPARAMETERS = ("betas", "eps", "weight_decay")


def config_fingerprint(config: RunConfig) -> str:
    """sha256 over the defining keys."""
    return sha256_json({key: value for key, value in flatten(to_dict(config)).items() if is_defining(key)})


def software() -> dict[str, str]:
    """Versions a later reader may want to know."""
    packages = ("umbel", "torch", "deepspeed", "accelerate", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def groups_of(engine: Engine) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: names, step counter, hyperparameters."""
    steps = engine.state.group_steps()
    return [
        {
            "names": group["names"],
            "step": step,
            "hyperparameters": {key: group[key] for key in _HYPERPARAMETERS},
        }
        for group, step in zip(engine.optimizer.param_groups, steps, strict=True)
    ]


def group_steps(engine: Engine, saved: list[dict[str, Any]]) -> list[int]:
    """The saved step counter of each live group, matched by parameter: groups may be cut differently."""
    by_name = {name: group["step"] for group in saved for name in group["names"]}
    return [by_name[group["names"][0]] for group in engine.optimizer.param_groups]


def check_parameters(manifest: dict[str, Any], model: torch.nn.Module, checkpoint: Path) -> None:
    """Refuse a checkpoint whose trained parameters are not those of the model.

    Raises:
        UmbelError: names the first one that differs.
    """
    ours, theirs = trainable_shapes(model), manifest["parameters"]
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UmbelError(
                f"holds {name} as {theirs.get(name, 'nothing')}, the model has {ours.get(name, 'nothing')}",
                where=str(checkpoint),
            )


def order_facts(order: GlobalOrder, sequences: int) -> dict[str, Any]:
    """Which global order it is, and what a run has taken of it: the next number, the rows of each source."""
    return {
        "seed": order.seed,
        "lanes": order.lanes,
        "number": _next_number(order, sequences),
        "rows": {name: count for name, count in order.counts(sequences).items() if count},
    }


def check_order(manifest: dict[str, Any], order: GlobalOrder, checkpoint: Path) -> None:
    """Refuse weights, phases or skipped ranges under which other rows would have been seen by now.

    Raises:
        UmbelError: going on would skip or repeat data.
    """
    saved, sequences = manifest["extra"].get("order"), manifest["sequences"]
    if saved is not None and saved != order_facts(order, sequences):
        raise UmbelError(
            "with this data.skip, these data.phases and weights the run would have seen other rows up to "
            f"sequence {sequences} (number {saved['number']} of the global order)",
            where=str(checkpoint),
            fix="let changes begin there or later, or go back to an earlier checkpoint",
        )


def _next_number(order: GlobalOrder, sequences: int) -> int:
    return order.number(sequences - 1) + 1 if sequences else 0


def check_position(manifest: dict[str, Any], schedule: Schedule, checkpoint: Path) -> None:
    """Refuse a batch schedule under which other sequences would have been seen by now.

    Raises:
        UmbelError: going on would skip or repeat data.
    """
    expected = sequences_at(schedule, manifest["step"])
    if manifest["sequences"] != expected:
        raise UmbelError(
            f"has seen {manifest['sequences']} sequences in {manifest['step']} steps, "
            f"with this batch it would be {expected}",
            where=str(checkpoint),
            fix="keep schedule.global_batch and schedule.batch_ramp: another batch is another run",
        )
