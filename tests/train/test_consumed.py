"""What is taken of each source, in the metrics and at the tracker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from support.small_models import ALONE
from train.engine import StepMetrics
from train.hooks.metrics import Metrics
from train.hooks.wandb import Wandb
from train.loop import StepRecord
from train.position import Position


def at(step: int) -> StepRecord:
    metrics = StepMetrics(torch.tensor(1.0), torch.tensor(1.0))
    return StepRecord(Position(step, step * 4, step * 100), 100, 1e-3, metrics, 0.0, 0.0)


def test_the_last_line_of_a_flush_tells_what_each_source_gave(tiny_config: Any) -> None:
    lines: list[dict[str, Any]] = []
    tiny_config.tracker.log_every = 3
    taken = lambda sequences: {"a": {"tokens": sequences * 10, "epochs": sequences / 8}}  # noqa: E731
    hook = Metrics(tiny_config, ALONE, [lines.extend], lambda _: None, consumed=taken)
    for step in range(1, 4):
        hook.after_step(at(step))
    assert [line.get("sources") for line in lines] == [
        {"a": {"tokens": 40, "epochs": 0.5}},
        None,
        {"a": {"tokens": 120, "epochs": 1.5}},
    ]


def test_the_tracker_gets_a_curve_for_each_source() -> None:
    logged: list[dict[str, Any]] = []
    tracker = Wandb.__new__(Wandb)
    tracker.run = SimpleNamespace(log=logged.append)
    sources = {"a": {"tokens": 40, "epochs": 0.5}, "b": {"tokens": 7}}
    tracker([{"step": 1, "loss": 2.0, "institution": "x", "sources": sources}, {"step": 2, "loss": 1.0}])
    assert logged == [
        {"step": 1, "loss": 2.0, "data/a/tokens": 40, "data/a/epochs": 0.5, "data/b/tokens": 7},
        {"step": 2, "loss": 1.0},
    ]
