"""Which part of the global order a rollback leaves out, and whether the run may do without it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from base.errors import UmbelError
from configs.batch import sequences_at
from configs.check import check
from configs.schema import RunConfig
from data.manifest import Manifest
from data.order.consumption import check_caps
from data.order.global_order import GlobalOrder
from data.order.weights import plan

TO_HERE = "to-here"
Range = list[int]
"""``[first, end]``: numbers of the global order, ``end`` not included."""


def range_to_skip(
    text: str, config: RunConfig, data: Manifest, checkpoint: dict[str, Any], last_step: int
) -> Range:
    """What was typed, as a range.

    Args:
        text: ``A:B``, or ``to-here`` for all that was read after the checkpoint up to ``last_step``.
        data: the manifest of the run's data.
        checkpoint: the manifest of the checkpoint from which the run is to go on.

    Raises:
        UmbelError: it is no range, holds nothing, or begins before what the checkpoint has read.
    """
    order, saved = _order(config, data), checkpoint["extra"].get("order")
    position = saved["number"] if saved else _next_number(order, checkpoint["sequences"])
    if text == TO_HERE:
        end = _next_number(order, sequences_at(config.schedule, last_step))
        if end <= position:
            fix = f"name a range that begins at {position} or later"
            raise UmbelError(
                f"nothing was read after step {checkpoint['step']}", where="--skip-data", fix=fix
            )
        return [position, end]
    first, end = _parse(text)
    if first < position:
        raise UmbelError(
            f"{text} begins before {position}, where the checkpoint of step {checkpoint['step']} goes on",
            where="--skip-data",
            fix="begin there or later, or go back to an earlier checkpoint",
        )
    return [first, end]


def add_range(config: RunConfig, data: Manifest, skip: Range) -> list[Range]:
    """``data.skip`` with one range more, after the checks that the next start would make.

    Raises:
        UmbelError: the config's rules forbid it, or a source would be read more often than its cap allows.
    """
    skipping = replace(config, data=replace(config.data, skip=_joined([*config.data.skip, skip])))
    check(skipping)
    total = sequences_at(config.schedule, config.schedule.steps)
    check_caps(skipping.data, data, _order(skipping, data), total)
    return skipping.data.skip


def _parse(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text, re.ASCII)
    if not match or int(match[1]) >= int(match[2]):
        fix = f"write A:B, numbers of the global order, or {TO_HERE}"
        raise UmbelError(f"{text!r} is no range", where="--skip-data", fix=fix)
    return int(match[1]), int(match[2])


def _joined(ranges: list[Range]) -> list[Range]:
    """The same numbers as ascending ranges that neither overlap nor touch."""
    joined: list[Range] = []
    for first, end in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([first, end])
    return joined


def _order(config: RunConfig, data: Manifest) -> GlobalOrder:
    phases = plan(config.data, data, sequences_at(config.schedule, config.schedule.steps))
    return GlobalOrder(phases, config.data.skip, config.schedule.global_batch, config.run.seed)


def _next_number(order: GlobalOrder, sequences: int) -> int:
    return order.number(sequences - 1) + 1 if sequences else 0
