"""How the run will go on otherwise than the other trainer did: what is worth a line, and what forbids it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from base.errors import UmbelError
from configs.batch import sequences_at
from configs.schema import RunConfig
from train.importing.source import Source
from train.parameters import parameter_groups
from train.schedule import learning_rate


def differences(source: Source, config: RunConfig, model: nn.Module, step: int) -> list[str]:
    """Each in one line: what it was, what it is now, and the key that keeps it.

    Args:
        source: by the model's own names.
        step: of the run, from which it goes on.
    """
    notes = [*_decay(source, config, model), *_adam(source, config), *_rate(source, config, step)]
    expected = sequences_at(config.schedule, step)
    if source.samples and source.samples != expected:
        notes.append(
            f"it had seen {source.samples} sequences, by this schedule it would be {expected}:"
            " see schedule.global_batch and schedule.batch_ramp"
        )
    if step >= config.schedule.steps:
        notes.append(f"nothing is left to do at step {step}: schedule.steps is {config.schedule.steps}")
    return notes


def check_counters(source: Source, config: RunConfig, model: nn.Module) -> None:
    """Refuse parameters in one group of this run's optimizer that were updated differently often.

    Raises:
        UmbelError: names two of them.
    """
    by_name = {name: group.step for group in source.groups for name in group.names}
    for group in parameter_groups(model, config.optimizer):
        counted = {by_name[name]: name for name in group["names"] if name in by_name}
        if len(counted) > 1:
            (one, first), (other, second) = sorted(counted.items())[:2]
            raise UmbelError(
                f"{first} was updated {one} times and {second} {other} times, here they are of one group",
                where="optimizer",
                fix="set optimizer.decay_embeddings and optimizer.decay_norms as it was trained",
            )


def _decay(source: Source, config: RunConfig, model: nn.Module) -> Iterator[str]:
    now = {
        name: group["weight_decay"]
        for group in parameter_groups(model, config.optimizer)
        for name in group["names"]
    }
    changed: dict[tuple[float, float], list[str]] = {}
    for group in source.groups:
        before = group.rule.get("weight_decay")
        for name in group.names:
            if isinstance(before, int | float) and not _close(before, now[name]):
                changed.setdefault((before, now[name]), []).append(name)
    for (before, after), names in changed.items():
        keys = (
            "optimizer.weight_decay"
            if before and after
            else "optimizer.decay_embeddings and optimizer.decay_norms"
        )
        yield (
            f"the weight decay of {len(names)} parameters ({names[0]}{', …' if len(names) > 1 else ''}) was"
            f" {before:g} and is {after:g} now: see {keys}"
        )


def _adam(source: Source, config: RunConfig) -> Iterator[str]:
    for key, now in (("betas", list(config.optimizer.betas)), ("eps", config.optimizer.eps)):
        told = [group.rule[key] for group in source.groups if key in group.rule]
        before = next((value for value in told if not _close(value, now)), None)
        if before is not None:
            keeps = f"optimizer.{key}={_shown(before)} keeps it"
            yield f"{key} was {_shown(before)} and is {_shown(now)} now: {keeps}"


def _rate(source: Source, config: RunConfig, step: int) -> Iterator[str]:
    """Some trainers leave the rate of the last step there, others that of the next."""
    told = next(
        (group.rule["lr"] for group in source.groups if isinstance(group.rule.get("lr"), float)), None
    )
    if told is None or not step:
        return
    last, coming = (learning_rate(config.schedule, config.optimizer.lr, each) for each in (step, step + 1))
    if not _close(told, last, 0.01) and not _close(told, coming, 0.01):
        now = f"{coming:.3g} at step {step + 1}"
        yield f"the learning rate was {told:.3g} and is {now}: see optimizer.lr and schedule"


def _close(one: Any, other: Any, tolerance: float = 1e-9) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return isinstance(one, int | float) and math.isclose(one, other, rel_tol=tolerance)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, int | float) else repr(value)
