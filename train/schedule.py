"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from configs.schema import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int) -> float:
    """Learning rate of 1-based step ``step``.

    Warm-up is linear from ``peak / warmup_steps``; the last step has ``peak × min_lr_ratio``
    (``constant`` stays at the peak). ``wsd`` is warm-up, stable, linear decay (Hu et al. 2024,
    arXiv:2404.06395); ``cosine`` as in Loshchilov & Hutter 2017, arXiv:1608.03983.
    """
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    return peak * (schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * _remaining(schedule, step))


def _remaining(schedule: Schedule, step: int) -> float:
    """How much of the decay lies ahead: 1 before it begins, 0 at the last step."""
    if schedule.name == "constant":
        return 1.0
    length = schedule.decay_steps if schedule.name == "wsd" else schedule.steps - schedule.warmup_steps
    progress = min(1.0, max(0.0, 1 - (schedule.steps - step) / length)) if length else 0.0
    if schedule.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress
