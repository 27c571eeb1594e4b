from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from configs.schema import Data, Mixture, Phase, Source
from data.order.consumption import check_caps, consumption
from data.order.global_order import GlobalOrder
from data.order.weights import plan

LENGTH, LANES = 100, 10


def manifest_of(rows: dict[str, int]) -> dict[str, Any]:
    counts = {name: {"rows": count, "documents": 5, "tokens": count * LENGTH} for name, count in rows.items()}
    return {
        "mode": "prepared",
        "sequence_length": LENGTH,
        "packing": "concat",
        "sources": {name: {"train": count} for name, count in counts.items()},
    }


def data_of(weights: dict[str, float], caps: dict[str, float], **more: Any) -> Data:
    sources = {
        name: Source(path=name, weight=weight, max_epochs=caps.get(name)) for name, weight in weights.items()
    }
    return Data(sources=sources, sequence_length=LENGTH, **more)


def order_of(data: Data, manifest: dict[str, Any], sequences: int) -> GlobalOrder:
    return GlobalOrder(plan(data, manifest, sequences), data.skip, LANES, 1)


def checked(
    weights: dict[str, float], caps: dict[str, float], rows: dict[str, int], sequences: int, **more: Any
) -> None:
    data, manifest = data_of(weights, caps, **more), manifest_of(rows)
    check_caps(data, manifest, order_of(data, manifest, sequences), sequences)


def refusal(*arguments: Any, **more: Any) -> str:
    with pytest.raises(UmbelError) as caught:
        checked(*arguments, **more)
    return str(caught.value)


def test_what_a_run_has_taken() -> None:
    data, manifest = data_of({"a": 3.0, "b": 1.0}, {}), manifest_of({"a": 50, "b": 100})
    order = order_of(data, manifest, 200)
    assert consumption(order, manifest, 0) == {
        "a": {"tokens": 0, "epochs": 0.0},
        "b": {"tokens": 0, "epochs": 0.0},
    }
    assert consumption(order, manifest, 200) == {
        "a": {"tokens": 15000, "epochs": 3.0},
        "b": {"tokens": 5000, "epochs": 0.5},
    }


def test_rows_of_unknown_number_have_no_epochs() -> None:
    data, manifest = data_of({"a": 1.0}, {}, mode="streaming"), manifest_of({"a": 0}) | {"mode": "streaming"}
    order = order_of(data, manifest, 200)
    assert consumption(order, manifest, 20) == {"a": {"tokens": 2000}}
    check_caps(data_of({"a": 1.0}, {"a": 0.1}, mode="streaming"), manifest, order, 200)


def test_a_cap_refuses_the_run_with_what_would_fit() -> None:
    weights, rows = {"a": 3.0, "b": 1.0}, {"a": 50, "b": 1000}
    checked(weights, {"a": 3.0}, rows, 200)
    assert refusal(weights, {"a": 2.0}, rows, 200) == (
        "data.sources.a: holds 5,000 tokens, and the run would read it 3.00 times, 15,000 tokens: "
        "max_epochs allows 2; lower its weight from 3 to at most 1, or raise its max_epochs to 3.00, "
        "or train for 66% of the steps"
    )
    checked(weights | {"a": 1.0}, {"a": 2.0}, rows, 200)
    checked(weights, {"a": 2.0}, rows, 132)


def test_alone_a_source_has_no_other_weight() -> None:
    assert refusal({"a": 1.0}, {"a": 1.0}, {"a": 50}, 500) == (
        "data.sources.a: holds 5,000 tokens, and the run would read it 10.00 times, 50,000 tokens: "
        "max_epochs allows 1; raise its max_epochs to 10.00, or train for 10% of the steps"
    )


def test_where_weights_are_computed_or_change_it_is_the_share_that_is_told() -> None:
    rows, caps = {"a": 50, "b": 1000}, {"a": 2.0}
    phases = [Phase(from_tokens=100 * LENGTH, weights={"a": 1.0})]
    line = refusal({"a": 0.0, "b": 1.0}, caps, rows, 300, phases=phases)
    assert "lower its share of the rows from 66.67% to at most 33.3%" in line
    hot = Mixture(weights="temperature", temperature=1e9)
    line = refusal({"a": 1.0, "b": 1.0}, caps, rows, 300, mixture=hot)
    assert "lower its share of the rows from 50.00% to at most 33.3%" in line


def test_estimates_say_that_they_are() -> None:
    data = data_of({"a": 1.0}, {"a": 1.0}, mode="streaming")
    manifest = manifest_of({"a": 0}) | {
        "mode": "streaming",
        "estimates": {"a": {"documents": 5, "tokens": 500}},
    }
    with pytest.raises(
        UmbelError, match=r"holds about 500 tokens, and the run would read it about 4\.00 times"
    ):
        check_caps(data, manifest, order_of(data, manifest, 20), 20)


@given(
    rows=st.dictionaries(st.sampled_from("abcdef"), st.integers(20, 5000), min_size=1),
    part=st.floats(0.05, 1),
    epochs=st.floats(0.5, 5),
)
def test_what_unimax_plans_its_own_caps_let_pass(rows: dict[str, int], part: float, epochs: float) -> None:
    sequences = max(1, int(part * sum(rows.values()) * epochs))
    data = data_of(dict.fromkeys(rows, 1.0), {}, mixture=Mixture(weights="unimax", max_epochs=epochs))
    manifest = manifest_of(rows)
    read = order_of(data, manifest, sequences).counts(sequences)
    assert all(read[name] <= epochs * rows[name] + len(rows) for name in rows)
