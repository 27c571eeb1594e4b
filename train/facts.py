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
from train.portable import stored_shapes, stores_frozen

_NOT_THE_RULE = {
    *("params", "names", "lr", "initial_lr", "step"),
    *("fused", "foreach", "capturable", "differentiable"),
}


def config_fingerprint(config: RunConfig) -> str:
    """sha256 over the defining keys."""
    return sha256_json({key: value for key, value in flatten(to_dict(config)).items() if is_defining(key)})


def software() -> dict[str, str]:
    """Versions a later reader may want to know."""
    packages = ("umbel", "torch", "deepspeed", "accelerate", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def optimizer_facts(engine: Engine) -> dict[str, Any]:
    """What else the optimizer's tensors need to be understood: groups, tied weights, fp16's loss scaler."""
    return {
        "groups": groups_of(engine),
        "tied": tied(engine.model, stores_frozen(engine.config.model)),
        "loss_scaler": engine.state.loss_scaler(),
    }


def restore_optimizer(engine: Engine, manifest: dict[str, Any]) -> None:
    """Step counters and loss scaler of a checkpoint, after its slices were read.

    Hyperparameters are the run's own, and define it: those of the manifest are for other readers.

    Raises:
        UmbelError: parameters that share a group now had different step counters.
    """
    engine.state.loaded(group_steps(engine, manifest["groups"]), manifest["loss_scaler"])


def groups_of(engine: Engine) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: names, step counter, hyperparameters."""
    return [
        {"names": group["names"], "step": step, "hyperparameters": hyperparameters(group)}
        for group, step in zip(engine.optimizer.param_groups, engine.state.group_steps(), strict=True)
    ]


def hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """What a parameter group says of its update rule, in any optimizer: betas, eps, amsgrad and so on.

    Not the learning rate: it follows from the step. Not how an update is computed (fused, foreach and the
    like): that may change from machine to machine.
    """
    return {key: value for key, value in group.items() if key not in _NOT_THE_RULE and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def tied(model: torch.nn.Module, with_frozen: bool) -> dict[str, str]:
    """The further names of stored parameters that have several, each with the one it is stored under."""
    names = stored_shapes(model, with_frozen)
    stored = {id(parameter): name for name, parameter in model.named_parameters() if name in names}
    every = model.named_parameters(remove_duplicate=False)
    return {name: stored[id(one)] for name, one in every if stored.get(id(one), name) != name}


def group_steps(engine: Engine, saved: list[dict[str, Any]]) -> list[int]:
    """The saved step counter of each live group, matched by parameter: groups may be cut differently.

    Raises:
        UmbelError: the members of a live group were saved with different counters.
    """
    by_name = {name: group["step"] for group in saved for name in group["names"]}
    return [_one_step(group["names"], by_name) for group in engine.optimizer.param_groups]


def _one_step(names: list[str], by_name: dict[str, int]) -> int:
    first = names[0]
    for name in names:
        if by_name[name] != by_name[first]:
            raise UmbelError(
                f"{first} was updated {by_name[first]} times, {name} {by_name[name]} times, "
                "and now they are of one group",
                where="the checkpoint's groups",
                fix="keep optimizer.decay_embeddings and optimizer.decay_norms as the run began with them",
            )
    return by_name[first]


def check_parameters(manifest: dict[str, Any], model: torch.nn.Module, checkpoint: Path) -> None:
    """Refuse a checkpoint whose parameters are not those of the model, or do not train where the model's do.

    Raises:
        UmbelError: names the first one that differs.
    """
    ours, theirs = stored_shapes(model, with_frozen=True), manifest["parameters"]
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = {name for group in manifest["groups"] for name in group["names"]}
    # Without a base, what is not stored is missing; with one, its frozen weights come from there.
    stored = [name for name in ours if name in theirs or name in trains or "base" not in manifest["extra"]]
    for name in [*stored, *sorted(theirs.keys() - ours.keys())]:
        difference = _difference(theirs.get(name), ours.get(name), name in trained, name in trains)
        if difference:
            raise UmbelError(
                f"is of another model: {name} {difference}",
                where=str(checkpoint),
                fix="keep the model as the run began with it, or start a run under another run.name",
            )


def _difference(before: list[int] | None, now: list[int] | None, trained: bool, trains: bool) -> str | None:
    """How a parameter as it was saved and as it is differ, by shape or by whether it trains."""
    if before != now:
        return f"is saved as {before or 'nothing'}, the model has {now or 'nothing'}"
    if trained != trains:
        return "was trained and is frozen now" if trained else "was frozen and trains now"
    return None


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
