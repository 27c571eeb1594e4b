from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpoint import reader as readers
from checkpoint.norms import norms
from checkpoint.reader import StateReader
from support.portable_state import make_state, save


def test_norms_of_layers_are_those_of_their_numbers(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "STREAMED", 4)
    state = make_state(shapes={"h.0.w": [7, 3], "h.0.b": [5], "h.1.w": [9]})
    state = state._replace(frozen={}, groups=[list(state.shapes)])
    read: list[int] = []
    with StateReader(save(checkpoints, state, world_size=3)) as reader:
        told = norms(reader, read.append)
    assert [each["layer"] for each in told] == ["h.0", "h.1"]
    assert [each["parameters"] for each in told] == [26, 9]
    values = np.concatenate([state.flat[name, "exp_avg"] for name in ("h.0.w", "h.0.b")]).astype(np.float64)
    found = told[0]["kinds"]["exp_avg"]
    assert found["norm"] == pytest.approx(np.linalg.norm(values))
    assert found["rms"] == pytest.approx(np.sqrt(np.mean(values**2)))
    assert found["mean"] == pytest.approx(values.mean())
    assert list(told[0]["kinds"]) == ["exp_avg", "exp_avg_sq", "master"]
    assert sum(read) == sum(one.nbytes for one in state.flat.values())


def test_what_is_not_finite_is_counted_and_left_out(checkpoints: Path) -> None:
    state = make_state(shapes={"w": [4]})._replace(frozen={}, groups=[["w"]])
    state.flat["w", "master"][:] = [3, np.nan, -np.inf, 4]
    with StateReader(save(checkpoints, state)) as reader:
        found = norms(reader)[0]["kinds"]["master"]
    assert found == {"norm": 5.0, "rms": pytest.approx(12.5**0.5), "mean": 3.5, "not_finite": 2}


def test_frozen_weights_have_norms_too(checkpoints: Path) -> None:
    state = make_state()
    state.frozen["base.weight"][:] = 0x4000  # bf16: 2.0
    state.frozen["base.bias"][:] = 0
    with StateReader(save(checkpoints, state)) as reader:
        (layer,) = [each for each in norms(reader) if each["layer"] == "base"]
    assert layer["kinds"]["frozen"]["norm"] == pytest.approx(48**0.5)
