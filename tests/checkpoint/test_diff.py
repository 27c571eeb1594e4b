from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint import reader as readers
from checkpoint.diff import Difference, Fact, diff
from checkpoint.reader import StateReader
from support.portable_state import State, make_state, save


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "STREAMED", 4)


def compare(tmp_path: Path, a: State, b: State, of_a: int = 2, of_b: int = 3, **facts: Any) -> Difference:
    first = save(tmp_path / "a", a, world_size=of_a)
    second = save(tmp_path / "b", b, world_size=of_b, **facts)
    with StateReader(first) as one, StateReader(second) as other:
        return diff(one, other)


def test_one_state_saved_by_different_processes_is_one_state(tmp_path: Path) -> None:
    found = compare(tmp_path, make_state(), make_state(), 1, 4, run_name="copy", software={"umbel": "9"})
    assert found.is_none
    assert found.tensors == 13
    assert found.origin == [
        Fact("run_name", "demo", "copy"),
        Fact("topology.world_size", 1, 4),
        Fact("software.umbel", "0.1.0", "9"),
    ]


def test_each_tensor_tells_how_far_it_is(tmp_path: Path) -> None:
    a, b = make_state(), make_state()
    b.flat["wte.weight", "master"][[2, 20]] += [0.5, -2.0]
    b.flat["scale", "exp_avg"][:] *= np.float32(1 + 1e-3)
    found = compare(tmp_path, a, b)
    assert [change.tensor for change in found.changed] == ["wte.weight|master", "scale|exp_avg"]
    change = found.changed[0]
    before, after = (state.flat["wte.weight", "master"].astype(np.float64) for state in (a, b))
    assert (change.elements, change.differing, change.not_finite) == (21, 2, 0)
    assert change.max_abs == np.abs(after - before).max()
    assert change.relative == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))
    assert not found.is_none


def test_bits_count_not_values(tmp_path: Path) -> None:
    """Minus zero is not zero, and not far from it; the same NaN is the same."""
    a, b = make_state(), make_state()
    a.flat["scale", "master"][:], b.flat["scale", "master"][:] = 0.0, -0.0
    a.flat["wte.weight", "master"][:2], b.flat["wte.weight", "master"][:2] = [0.0, np.nan], [-0.0, np.nan]
    changed = compare(tmp_path, a, b).changed
    assert [change.tensor for change in changed] == ["scale|master", "wte.weight|master"]
    for change in changed:
        assert (change.differing, change.max_abs, change.relative) == (1, 0.0, 0.0)


@pytest.mark.parametrize(("before", "after"), [(1.0, np.nan), (np.inf, 1.0), (0.0, 3.0)])
def test_what_has_no_measure_comes_first(tmp_path: Path, before: float, after: float) -> None:
    a, b = make_state(), make_state()
    a.flat["scale", "master"][:], b.flat["scale", "master"][:] = before, after
    b.flat["wte.weight", "master"][:] *= 1000
    found = compare(tmp_path, a, b).changed
    assert [change.tensor for change in found] == ["scale|master", "wte.weight|master"]
    assert math.isinf(found[0].relative)
    assert found[0].not_finite == (before != 0)


def test_tensors_that_only_one_has_and_those_of_another_form(tmp_path: Path) -> None:
    a, b = make_state(), make_state(shapes={"wte.weight": [3, 7], "scale": [], "new": [2]})
    del b.buffers["position_ids"]
    b.buffers["rotary.inv_freq"] = np.arange(3)
    found = compare(tmp_path, a, b)
    assert found.only_a == [
        "h.0.bias|exp_avg",
        "h.0.bias|exp_avg_sq",
        "h.0.bias|master",
        "position_ids|buffer",
    ]
    assert found.only_b == ["new|exp_avg", "new|exp_avg_sq", "new|master"]
    assert found.reshaped[0] == Fact("rotary.inv_freq|buffer", "F64 [3]", "I64 [3]")
    assert found.reshaped[-1] == Fact("wte.weight|master", "F32 [7, 3]", "F32 [3, 7]")


def test_facts_of_the_state_make_another_state(tmp_path: Path) -> None:
    groups = [
        {"names": ["h.0.bias", "scale"], "step": 99, "hyperparameters": {"lr": 1e-3, "betas": [0.9, 0.99]}},
        {
            "names": ["wte.weight"],
            "step": 100,
            "hyperparameters": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1},
        },
    ]
    found = compare(tmp_path, make_state(), make_state(), groups=groups, loss_scaler={"cur_scale": 2})
    assert not found.is_none
    assert found.changed == []
    assert found.state == [
        Fact("loss_scaler.cur_scale", None, 2),
        Fact("groups[0].names", [], ["scale"]),
        Fact("groups[0].step", 100, 99),
        Fact("groups[0].betas", [0.9, 0.95], [0.9, 0.99]),
        Fact("groups[1].names", ["scale"], []),
        Fact("groups[1].eps", None, 1),
    ]
    fewer = [
        {
            "names": sorted(make_state().shapes),
            "step": 100,
            "hyperparameters": {"lr": 1e-3, "betas": [0.9, 0.95]},
        }
    ]
    found = compare(tmp_path / "fewer", make_state(), make_state(), groups=fewer)
    assert found.state == [
        Fact("groups[0].names", [], ["scale", "wte.weight"]),
        Fact("groups[1]", "2 parameters", None),
    ]
