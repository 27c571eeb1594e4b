"""The learning rate: warm-up, peak, decay, and its value at the last step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Schedule
from train.schedule import learning_rate


def schedule(name: str, **more: int | float) -> Schedule:
    return Schedule(name=name, **{"steps": 100, "warmup_steps": 10, "min_lr_ratio": 0.1, **more})  # type: ignore[arg-type]


def test_known_points() -> None:
    cosine, linear = schedule("cosine"), schedule("linear")
    wsd = schedule("wsd", decay_steps=20)
    constant = schedule("constant")
    for one in (cosine, linear, wsd, constant):
        assert learning_rate(one, 2.0, 1) == pytest.approx(0.2)
        assert learning_rate(one, 2.0, 10) == pytest.approx(2.0)
    assert learning_rate(cosine, 2.0, 55) == pytest.approx(2.0 * 0.55)
    assert learning_rate(linear, 2.0, 55) == pytest.approx(2.0 * 0.55)
    assert learning_rate(wsd, 2.0, 80) == pytest.approx(2.0)
    assert learning_rate(wsd, 2.0, 90) == pytest.approx(2.0 * 0.55)
    assert learning_rate(constant, 2.0, 100) == pytest.approx(2.0)
    for one in (cosine, linear, wsd):
        assert learning_rate(one, 2.0, 100) == pytest.approx(0.2)


@given(
    st.sampled_from(["cosine", "wsd", "linear", "constant"]), st.integers(1, 500), st.data(), st.floats(0, 1)
)
def test_rises_then_never_rises_again(name: str, steps: int, data: st.DataObject, ratio: float) -> None:
    warmup = data.draw(st.integers(0, steps))
    decay = data.draw(st.integers(0, steps - warmup))
    one = schedule(name, steps=steps, warmup_steps=warmup, decay_steps=decay, min_lr_ratio=ratio)
    rates = [learning_rate(one, 1.0, step) for step in range(1, steps + 1)]
    assert rates[:warmup] == sorted(rates[:warmup])
    after = rates[max(0, warmup - 1) :]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(after))
    assert all(0 < rate <= 1 or ratio == 0 for rate in rates)
