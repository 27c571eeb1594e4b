from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from configs.schema import Data, Mixture, Phase, Source
from data.order.sizes import sizes_of
from data.order.weights import normalised, plan, proportional, temperature, unimax

LENGTH = 100
names = st.text("abcdefgh", min_size=1, max_size=3)
sizes = st.dictionaries(names, st.integers(1, 10**12).map(float), min_size=1, max_size=12)
shares = st.dictionaries(names, st.floats(1e-6, 1e6), min_size=1, max_size=12)


def source_of(rows: int = 10, documents: int = 10, tokens: int | None = None, **more: int) -> dict[str, Any]:
    """A source's entry in a manifest."""
    counts = {"rows": rows, "documents": documents, "tokens": rows * LENGTH if tokens is None else tokens}
    return {"train": counts | more, "files": [{"size": 1000, "rows": documents}]}


def manifest_of(packing: str = "concat", **sources: dict[str, Any]) -> dict[str, Any]:
    return {"mode": "prepared", "sequence_length": LENGTH, "packing": packing, "sources": sources}


def data_of(weights: dict[str, float], by: Any = "tokens", **more: Any) -> Data:
    mixture = more.pop("mixture", None) or Mixture(by=by)
    sources = {name: Source(path=name, weight=weight) for name, weight in weights.items()}
    return Data(sources=sources, sequence_length=LENGTH, mixture=mixture, **more)


# Weights from sizes -------------------------------------------------------------------------------------


@given(shares)
def test_shares_sum_to_one_and_keep_their_ratios(weights: dict[str, float]) -> None:
    found = normalised(weights)
    assert math.fsum(found.values()) == pytest.approx(1, abs=1e-10)
    assert normalised(found) == found  # What `umbel data mix` prints can be declared.
    for name in weights:
        assert found[name] == pytest.approx(weights[name] / sum(weights.values()), rel=1e-9)


def test_even_the_largest_floats_have_a_sum() -> None:
    assert normalised({"a": 1.7e308, "b": 1.7e308, "c": 0.0}) == {"a": 0.5, "b": 0.5}


@given(sizes, st.randoms())
def test_the_order_of_keys_moves_no_bit(found: dict[str, float], random: Any) -> None:
    mixed = list(found.items())
    random.shuffle(mixed)
    assert list(normalised(dict(mixed)).items()) == list(normalised(found).items())
    assert temperature(dict(mixed), 3.0) == temperature(found, 3.0)
    assert unimax(dict(mixed), 1e6) == unimax(found, 1e6)


@given(sizes)
def test_temperature_lies_between_proportional_and_equal(found: dict[str, float]) -> None:
    assert temperature(found, 1.0) == proportional(found)
    for weight in temperature(found, 1e9).values():
        assert weight == pytest.approx(1 / len(found), rel=1e-6)
    small, large = min(found.values()), max(found.values())
    cooler, warmer = temperature(found, 2.0), temperature(found, 5.0)
    by_size = {size: name for name, size in found.items()}
    assert warmer[by_size[small]] >= cooler[by_size[small]] * (1 - 1e-9)
    assert warmer[by_size[large]] <= cooler[by_size[large]] * (1 + 1e-9)


def test_a_temperature_near_zero_takes_the_largest_alone() -> None:
    assert temperature({"a": 2e9, "b": 1e9}, 1e-4) == {"a": 1.0}


@given(sizes, st.floats(0.01, 1))
def test_unimax_never_reads_beyond_a_cap_and_is_equal_below_it(found: dict[str, float], part: float) -> None:
    caps = {name: 4 * size for name, size in found.items()}
    budget = part * sum(caps.values())
    read = {name: share * budget for name, share in unimax(caps, budget).items()}
    assert sum(read.values()) == pytest.approx(budget)
    capped = [name for name in read if read[name] >= caps[name] * (1 - 1e-9)]
    assert all(read[name] <= caps[name] * (1 + 1e-9) for name in read)
    free = [read[name] for name in read if name not in capped]
    assert not free or max(free) == pytest.approx(min(free))
    assert all(caps[name] <= min(free) * (1 + 1e-9) for name in capped if free)


def test_unimax_by_hand() -> None:
    """Of 90 tokens in all each of three would get 30; the smallest holds 10, so the others share 80."""
    assert unimax({"small": 10.0, "large": 1000.0, "larger": 2000.0}, 90) == pytest.approx(
        {"small": 10 / 90, "large": 40 / 90, "larger": 40 / 90}
    )


# Weights of rows ----------------------------------------------------------------------------------------


def test_full_rows_are_shared_as_tokens_are() -> None:
    manifest = manifest_of(a=source_of(10, documents=500), b=source_of(10, documents=2))
    assert plan(data_of({"a": 3.0, "b": 1.0}), manifest, 50) == [(0, {"a": 0.75, "b": 0.25})]


def test_documents_in_full_rows_weigh_by_their_length() -> None:
    """a has 4 documents to a row, b one: as many documents of both are four rows of b to one of a."""
    manifest = manifest_of(a=source_of(10, documents=40), b=source_of(10, documents=10))
    ((_, weights),) = plan(data_of({"a": 1.0, "b": 1.0}, by="samples"), manifest, 50)
    assert weights == pytest.approx({"a": 0.2, "b": 0.8})


def test_a_document_to_a_row() -> None:
    """Rows of a hold 20 tokens, those of b 80, of which what was cut off is no part."""
    manifest = manifest_of(
        "none", a=source_of(10, tokens=200), b=source_of(10, tokens=900, truncated_tokens=100)
    )
    same = data_of({"a": 1.0, "b": 1.0}, by="samples", packing="none")
    assert plan(same, manifest, 50) == [(0, {"a": 0.5, "b": 0.5})]
    ((_, weights),) = plan(data_of({"a": 1.0, "b": 1.0}, packing="none"), manifest, 50)
    assert weights == pytest.approx({"a": 0.8, "b": 0.2})


def test_documents_that_fit_a_row_together() -> None:
    manifest = manifest_of(
        "best_fit", a=source_of(10, documents=30, tokens=900), b=source_of(10, documents=10, tokens=300)
    )
    ((_, by_tokens),) = plan(data_of({"a": 1.0, "b": 1.0}, packing="best_fit"), manifest, 50)
    assert by_tokens == pytest.approx({"a": 0.25, "b": 0.75})
    samples = data_of({"a": 3.0, "b": 1.0}, by="samples", packing="best_fit")
    ((_, by_samples),) = plan(samples, manifest, 50)
    assert by_samples == pytest.approx({"a": 0.5, "b": 0.5})


@given(sizes, st.sampled_from(["declared", "proportional", "temperature", "unimax"]))
def test_whatever_the_rule_a_phase_sums_to_one(found: dict[str, float], rule: Any) -> None:
    manifest = manifest_of(**{name: source_of(int(size)) for name, size in found.items()})
    data = data_of(dict.fromkeys(found, 1.0), mixture=Mixture(weights=rule))
    ((start, weights),) = plan(data, manifest, 1)
    assert start == 0
    assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-10)


def test_sources_of_weight_0_are_read_in_no_phase_that_does_not_name_them() -> None:
    manifest = manifest_of(a=source_of(10), b=source_of(1000), c=source_of(1000))
    for rule in ("declared", "proportional", "temperature", "unimax"):
        phases = [Phase(from_tokens=101, weights={"c": 2.0, "a": 0.0})]
        data = data_of({"a": 1.0, "b": 1.0, "c": 0.0}, mixture=Mixture(weights=rule), phases=phases)
        (_, first), (start, second) = plan(data, manifest, 50)
        assert set(first) == {"a", "b"}
        assert (start, second) == (2, {"c": 1.0})


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=5, unique=True))
def test_phases_ascend(from_rows: list[int]) -> None:
    phases = [Phase(from_tokens=LENGTH * row - 0.5, weights={"a": 1.0}) for row in sorted(from_rows)]
    starts = [start for start, _ in plan(data_of({"a": 1.0}, phases=phases), manifest_of(a=source_of()), 9)]
    assert starts == [0, *sorted(from_rows)]


# UniMax and the run -------------------------------------------------------------------------------------


def unimax_of(rows: dict[str, int], sequences: int, **more: Any) -> list[tuple[int, dict[str, float]]]:
    data = data_of(dict.fromkeys(rows, 1.0), mixture=Mixture(weights="unimax", max_epochs=2.0), **more)
    return plan(data, manifest_of(**{name: source_of(count) for name, count in rows.items()}), sequences)


def test_unimax_shares_out_what_the_first_phase_reads() -> None:
    assert unimax_of({"a": 10, "b": 1000}, 100) == [(0, {"a": 0.2, "b": 0.8})]
    later = [Phase(from_tokens=40 * LENGTH, weights={"b": 1.0})]
    assert unimax_of({"a": 10, "b": 1000}, 100, phases=later)[0] == (0, {"a": 0.5, "b": 0.5})


def test_unimax_heeds_a_sources_own_cap() -> None:
    data = data_of({"a": 1.0, "b": 1.0}, mixture=Mixture(weights="unimax", max_epochs=2.0))
    data.sources["a"].max_epochs = 1.0
    assert plan(data, manifest_of(a=source_of(10), b=source_of(1000)), 100) == [(0, {"a": 0.1, "b": 0.9})]


def test_more_than_unimax_may_read_is_refused() -> None:
    with pytest.raises(UmbelError) as caught:
        unimax_of({"a": 10, "b": 20}, 100)
    assert str(caught.value) == (
        "data.mixture.max_epochs: the run would read 10,000 tokens, and the caps of all sources allow 6,000; "
        "raise it to 3.34, add data, or lower schedule.steps"
    )


# What is not known --------------------------------------------------------------------------------------


def streaming(packing: str = "concat", **estimates: dict[str, float]) -> dict[str, Any]:
    sources = {name: {"files": []} for name in "ab"}
    return manifest_of(packing, **sources) | {"mode": "streaming", "estimates": estimates}


def test_streaming_takes_estimates_for_sizes() -> None:
    estimates = {"a": {"documents": 10, "tokens": 2500}, "b": {"documents": 10, "tokens": 5000}}
    found = sizes_of(streaming(**estimates) | {"held_out": 0.1})
    assert (found["a"].tokens, found["a"].rows, found["a"].documents) == (2250.0, 22.5, 9.0)
    assert not found["a"].is_exact
    data = data_of({"a": 1.0, "b": 1.0}, mixture=Mixture(weights="proportional"), mode="streaming")
    assert plan(data, streaming(**estimates), 9)[0][1] == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    one_each = sizes_of(streaming("none", **estimates) | {"held_out": 0.1})["b"]
    assert (one_each.rows, one_each.tokens) == (9.0, 900.0)  # cut at 100 each


def test_declared_shares_of_tokens_need_no_sizes() -> None:
    data = data_of({"a": 1.0, "b": 3.0}, mode="streaming")
    assert plan(data, streaming(), 9) == [(0, {"a": 0.25, "b": 0.75})]
    one_each = data_of({"a": 1.0, "b": 3.0}, by="samples", mode="streaming", packing="none")
    assert plan(one_each, streaming("none"), 9) == [(0, {"a": 0.25, "b": 0.75})]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"mixture": Mixture(weights="unimax")},
            "data.mixture.weights: unimax needs to know how much source a holds, and its beginning tells "
            "nothing; set data.mode=prepared, or declare weights by tokens",
        ),
        (
            {"by": "samples"},
            "data.mixture.by: samples needs to know how much source a holds, and its beginning tells "
            "nothing; set data.mode=prepared, or declare weights by tokens",
        ),
        (
            {"by": "tokens", "packing": "none"},
            "data.mixture.by: tokens needs to know how much source a holds, and its beginning tells "
            "nothing; set data.mode=prepared, or declare weights by samples",
        ),
    ],
)
def test_a_size_that_nobody_knows(settings: dict[str, Any], line: str) -> None:
    nothing = streaming(a={"documents": 0, "tokens": 0, "bytes_per_token": 0.0})
    with pytest.raises(UmbelError) as caught:
        plan(data_of({"a": 1.0}, mode="streaming", **settings), nothing, 9)
    assert str(caught.value) == line


def test_a_source_without_rows_cannot_weigh() -> None:
    with pytest.raises(UmbelError, match=r"data\.sources\.b: has a weight, but no text to train on"):
        plan(data_of({"a": 1.0, "b": 1.0}), manifest_of(a=source_of(), b=source_of(0)), 9)
