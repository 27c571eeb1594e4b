"""The state of every engine, saved and given to every other one. Guards upgrades of DeepSpeed."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16 import loss_scaler as fp16

from support.engines import ENGINES, Topology
from support.exchange import Load, Plan, exchange
from train.deepspeed_state import Stage12State
from train.state import share

WHOLE = os.environ.get("STATE_MATRIX") == "whole"
"""All pairs, which takes minutes, in place of three for each topology."""

PLAIN = [engine for engine in ENGINES if not engine.endswith("offload")]
GRID = [Topology(engine, world) for engine in PLAIN for world in (1, 2, 3)]
OFFLOADED = [Topology(engine, 2) for engine in ENGINES if engine not in PLAIN]

# bf16 has 8 bits: one rounding moves a number by up to 2^-9 of itself, and the engines round at other places
# (autocast over fp32 weights, or weights in bf16). A loss is a mean over some fifty targets, so a quarter of
# that is allowed; seen in all pairs: 1.4e-4. A stale weight shows as 1e-3 and more.
TOLERANCE = {"fp32": 1e-5, "bf16": 2**-11}


def covering(precision: str) -> list[Plan]:
    """Three sources for each topology, itself among them, and every way between the world sizes."""
    every = [*GRID, *OFFLOADED]
    steps = (0, 4, 11) if precision == "fp32" else (0, 5, 13)
    mixed = [(every[(k + step) % len(every)], target) for step in steps for k, target in enumerate(every)]
    ring = [("torch", 2), ("zero3", 2), ("zero1", 3), ("zero0", 1), ("zero3", 3), ("zero2", 1), ("torch", 2)]
    adapted = [(Topology(*one), Topology(*other)) for one, other in pairwise(ring)]
    return [Plan("mixed", precision, mixed), Plan("adapted", precision, adapted)]


def whole(precision: str) -> list[Plan]:
    # Its own first: an engine is new at its first load, and then the losses must be the same to the bit.
    on_two = [Topology(engine, 2) for engine in ENGINES]
    pairs, crossing = (
        sorted(product(topologies, repeat=2), key=lambda pair: pair[0] != pair[1])
        for topologies in (GRID, on_two)
    )
    offloaded = [pair for pair in crossing if not set(pair) <= set(GRID)]
    return [Plan("mixed", precision, pairs + offloaded), Plan("adapted", precision, crossing)]


def allowed(load: Load) -> float:
    """How far from the uninterrupted run a loss may be, as a part of it."""
    return TOLERANCE[load.precision] if load.source != load.target else 0


@pytest.mark.slow
def test_every_engine_goes_on_with_what_every_other_saved(tmp_path: Path) -> None:
    plans = [plan for precision in TOLERANCE for plan in (whole if WHOLE else covering)(precision)]
    loads = exchange(tmp_path, plans, timeout=3600 if WHOLE else 400)
    assert len(loads) == sum(len(plan.pairs) for plan in plans)
    for load in loads:
        assert load.differences == [], load
        for loss, expected in zip(load.losses, load.expected, strict=True):
            assert abs(loss / expected - 1) <= allowed(load), f"{load}: {loss}, not {expected}"
        assert load.expected[0] != load.expected[-1], f"{load}: nothing is learned, so nothing is shown"


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_covering_part_meets_every_topology(precision: str) -> None:
    mixed, adapted = covering(precision)
    assert min(Counter(source for source, _ in mixed.pairs).values()) >= 3
    assert min(Counter(target for _, target in mixed.pairs).values()) >= 3
    assert {target for _, target in mixed.pairs} == {*GRID, *OFFLOADED}
    worlds = {(source.world, target.world) for source, target in mixed.pairs}
    assert worlds == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}
    assert len({source for source, _ in adapted.pairs}) > 4


@pytest.mark.parametrize("numel", [0, 1, 2, 7, 3000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_shares_follow_one_another_and_differ_by_one_at_most(numel: int, world_size: int) -> None:
    shares = [share(numel, rank, world_size) for rank in range(world_size)]
    ends = [0, *(start + length for start, length in shares)]
    assert [start for start, _ in shares] == ends[:-1]
    assert ends[-1] == numel
    lengths = [length for _, length in shares]
    assert max(lengths) - min(lengths) <= 1


# fp16's loss scaler --------------------------------------------------------------------------------------


def scaler() -> Any:
    arguments = {"init_scale": 2.0**16, "scale_window": 4, "min_scale": 1.0, "delayed_shift": 2}
    return fp16.CreateLossScaler(torch.half, 1.0, True, {**arguments, "consecutive_hysteresis": False})


def state_of(loss_scaler: Any) -> Stage12State:
    """Of an optimizer that has a scaler and no parameters: training in fp16 needs a GPU."""
    zero = SimpleNamespace(param_names={}, single_partition_of_fp32_groups=[], update_lp_params=lambda: None)
    if loss_scaler is not None:
        zero.loss_scaler = loss_scaler
    return Stage12State(zero, {})


def test_a_loss_scaler_goes_on_where_it_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp16.dist, "get_rank", lambda: 0)
    saved = scaler()
    for overflow in (False, True, False, False, True, False):
        saved.update_scale(overflow)
    facts = state_of(saved).loss_scaler()
    assert facts == {"cur_scale": 2.0**15, "cur_iter": 6, "last_overflow_iter": 4, "cur_hysteresis": 1}
    fresh = scaler()
    state_of(fresh).loaded([], facts)
    assert vars(fresh) == vars(saved)
    for overflow in (False, False, False, False, True, True, False):
        saved.update_scale(overflow)
        fresh.update_scale(overflow)
        assert vars(fresh) == vars(saved)


@pytest.mark.parametrize("without", [None, fp16.CreateLossScaler(torch.bfloat16, 1.0, False, None)])
def test_without_fp16_there_is_no_loss_scaler(without: Any) -> None:
    state = state_of(without)
    assert state.loss_scaler() is None
    state.loaded([], {"cur_scale": 2.0, "cur_iter": 1, "last_overflow_iter": 0, "cur_hysteresis": 1})
    assert without is None or without.cur_scale == 1.0
