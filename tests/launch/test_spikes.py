"""A loss that leaves its range for good is told once, with the way back; what returns, or drifts, is not."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import RunFailed
from configs.schema import RunConfig
from launch.supervise.detect.spikes import (
    PATIENCE,
    WINDOW,
    SpikeDetector,
    after_nan,
    find_spike,
    is_nan,
)
from record.events import record_event
from record.folder import RunFolder
from record.metrics import MetricsWriter
from support.runs import freeze, tiny

ENOUGH = WINDOW + PATIENCE


def noisy(steps: int, level: float = 3.0, noise: float = 0.05, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [level + draw.gauss(0, noise) for _ in range(steps)]


def numbered(losses: Iterable[float]) -> list[tuple[int, float]]:
    return list(enumerate(losses, 1))


def first_spike(losses: list[float]) -> tuple[int, Any] | None:
    """At which step a spike is seen first, and the spike."""
    told = numbered(losses)
    for end in range(len(told) + 1):
        if spike := find_spike(told[:end]):
            return end, spike
    return None


@pytest.mark.parametrize("height", [0.6, 2.0, 8.0])
def test_a_loss_that_rises_and_stays_is_found(height: float) -> None:
    losses = noisy(200) + noisy(100, 3.0 + height)
    assert first_spike(losses) is not None
    end, spike = first_spike(losses)  # type: ignore[misc]
    assert end == 200 + PATIENCE
    assert spike.step == 201
    assert spike.loss == pytest.approx(3.0 + height, abs=0.1)
    assert spike.usual == pytest.approx(3.0, abs=0.05)


def test_a_spike_that_returns_is_none() -> None:
    returns = [9.0] * (PATIENCE - 1)
    assert first_spike(noisy(200) + returns + noisy(200, seed=1)) is None


@given(st.floats(1.0, 12.0), st.floats(0.0, 0.5), st.integers(0, 1000))
def test_noise_is_no_spike(level: float, noise: float, seed: int) -> None:
    assert find_spike(numbered(noisy(ENOUGH, level, noise, seed))) is None


@given(st.integers(0, 1000), st.floats(10, 500))
def test_learning_is_no_spike(seed: int, pace: float) -> None:
    draw = random.Random(seed)
    falling = [2 + 9 * math.exp(-step / pace) + draw.gauss(0, 0.05) for step in range(400)]
    assert all(find_spike(numbered(falling)[:end]) is None for end in range(0, 400, 20))


@given(st.lists(st.floats(0, 20), max_size=ENOUGH - 1))
def test_too_few_steps_say_nothing(losses: list[float]) -> None:
    assert find_spike(numbered(losses)) is None


def test_a_slow_rise_is_not_a_spike() -> None:
    assert first_spike([3 + step / 2000 for step in range(2000)]) is None


# The detector ----------------------------------------------------------------------------------------


class Run:
    """A run whose metrics grow; a step has four sequences."""

    def __init__(self, tmp_path: Path, *overrides: str) -> None:
        self.config: RunConfig = tiny(tmp_path, "schedule.steps=1000", *overrides)
        self.folder: RunFolder = freeze(self.config)
        self.step, self.now, self.attempt = 0, 0.0, 0
        self.start(0)

    def start(self, step: int) -> None:
        self.attempt, self.step = self.attempt + 1, step
        record_event(self.folder, "start", attempt=self.attempt, step=step)
        self.detector = SpikeDetector(self.folder, self.config)

    def live(self, losses: list[float]) -> list[dict[str, Any]]:
        """The events of what was found."""
        found = []
        for first in range(0, len(losses), 10):
            lines = []
            for loss in losses[first : first + 10]:
                self.step += 1
                lines.append({"step": self.step, "loss": loss, "sequences": 4 * self.step})
            MetricsWriter(self.folder, self.attempt).write(lines)
            self.now += 10
            for finding in self.detector.look(self.now):
                event = {"text": finding.text, **finding.facts}
                record_event(self.folder, finding.kind, **event)
                found.append({"fatal": finding.fatal, **event})
        return found

    def saved(self, *steps: int) -> None:
        for step in steps:
            place = self.folder.checkpoints / f"step-{step:08d}"
            place.mkdir(exist_ok=True)
            (place / "manifest.json").write_text("{}")


def test_a_spike_is_told_once_even_after_a_restart(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (spike,) = run.live(noisy(200) + [9.0] * 60)
    assert spike["step"] == 201
    assert spike["fatal"] is False
    assert spike["text"] == f"the loss rose from {spike['usual']:.3f} to 9.000 at step 201 and stays there"
    assert "to" not in spike
    run.start(run.step)
    assert run.live([9.0] * 60) == []
    assert len(run.live([9.0] * 60 + [15.0] * 60)) == 1  # another one, once there is a new range


def test_by_policy_it_says_from_where_to_go_on(tmp_path: Path) -> None:
    run = Run(tmp_path, "supervision.on_spike=rollback")
    run.saved(100, 150, 200, 225)
    (spike,) = run.live(noisy(200) + [9.0] * 30)
    assert spike["fatal"] is True
    assert (spike["step"], spike["to"], spike["skip"]) == (201, 200, "to-here")


def test_what_did_not_help_is_not_done_again(tmp_path: Path) -> None:
    run = Run(tmp_path, "supervision.on_spike=rollback")
    run.saved(200)
    run.live(noisy(200) + [9.0] * 30)
    record_event(run.folder, "rollback", **{"to": 200, "from": 230})
    run.start(200)
    assert run.live([3.0] * 20) == []
    (again,) = run.live([9.0] * 30)
    assert again["fatal"] is True
    assert "to" not in again


def test_a_spike_before_any_checkpoint_has_no_way_back(tmp_path: Path) -> None:
    (spike,) = Run(tmp_path, "supervision.on_spike=rollback").live(noisy(200) + [9.0] * 30)
    assert spike["fatal"] is True
    assert "to" not in spike


def test_stop_is_a_policy_too(tmp_path: Path) -> None:
    run = Run(tmp_path, "supervision.on_spike=stop")
    run.saved(100)
    (spike,) = run.live(noisy(200) + [9.0] * 30)
    assert spike["fatal"] is True
    assert "to" not in spike


def test_another_mixture_has_a_range_of_its_own(tmp_path: Path) -> None:
    tokens = 200 * 4 * 32
    run = Run(tmp_path, f"data.phases=[{{from_tokens: {tokens}, weights: {{data: 1.0}}}}]")
    assert run.live(noisy(200) + noisy(100, 5.0)) == []
    assert len(run.live(noisy(100, 5.0) + [9.0] * 30)) == 1


def test_it_looks_only_now_and_then_and_survives_a_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    assert run.detector.look(0.0) == []
    run.live([3.0] * 5)
    monkeypatch.setattr("launch.supervise.detect.spikes.tail_lines", lambda *_: pytest.fail("read again"))
    for tick in range(20):
        assert run.detector.look(run.now + tick / 2) == []


# No number -------------------------------------------------------------------------------------------


def nan(step: int, what: str = "the loss is nan") -> dict[str, Any]:
    return {
        "event": "failed",
        "error": f"step {step}, rank 3: {what}; the checkpoint of step 8 is good: lower optimizer.lr",
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("step 12, rank 0, 3: the loss is nan; the checkpoint of step 8 is good", True),
        ("step 12, rank 0: the loss is inf", True),
        ("step 12: the loss is -inf; no checkpoint was saved before", True),
        ("step 12: the gradient norm is not finite; no checkpoint was saved before", True),
        ("rank 0: was killed by SIGKILL", False),
        ("the loss is 3.2", False),
        (None, False),
    ],
)
def test_a_failure_by_no_number_is_known(error: str | None, expected: bool) -> None:
    assert is_nan({"event": "failed", "error": error}) is expected


@pytest.mark.parametrize(("loss", "mine"), [(math.nan, False), (-math.inf, False), (3.0, True)])
def test_the_words_are_those_of_the_training(tmp_path: Path, loss: float, mine: bool) -> None:
    import torch

    from train.distributed import World
    from train.hooks.metrics import Metrics

    metrics = Metrics(tiny(tmp_path), World(0, 1, torch.device("cpu"), None), [], lambda _: None)
    with pytest.raises(RunFailed) as failed:
        metrics._fail(12, loss, mine)
    assert is_nan({"event": "failed", "error": str(failed.value)})


def test_after_no_number_it_goes_back_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert after_nan(run.folder, [nan(12)]) is None  # nowhere to go back to
    run.saved(4, 8, 12, 16)
    assert after_nan(run.folder, []) is None
    assert after_nan(run.folder, [{"event": "failed", "error": "killed"}]) is None
    assert after_nan(run.folder, [nan(13), nan(12)]) == {"to": 8, "skip": "to-here"}
    record_event(run.folder, "rollback", **{"to": 8, "from": 12})
    assert after_nan(run.folder, [nan(10)]) is None
    assert after_nan(run.folder, [nan(14)]) == {"to": 12, "skip": "to-here"}
