from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from data.order import shuffle
from data.order.document_order import DocumentOrder
from data.order.global_order import GlobalOrder
from data.order.mixing import Mixing
from data.order.shuffle import SMALL, shuffled

weights = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.001, 1000), min_size=1, max_size=8)


# Mixing -----------------------------------------------------------------------------------------------


@given(weights, st.integers(0, 2**40), st.integers(1, 300))
def test_ordinals_are_the_counts_before(weights: dict[str, float], start: int, length: int) -> None:
    mixing = Mixing(weights)
    counts = mixing.counts(start)
    assert sum(counts.values()) == start
    picks = mixing.picks(np.arange(start, start + length))
    for source, ordinal in zip(picks.sources.tolist(), picks.ordinals.tolist(), strict=True):
        assert ordinal == counts[mixing.sources[source]]
        counts[mixing.sources[source]] += 1
    assert mixing.counts(start + length) == counts


@given(weights, st.lists(st.integers(0, 2**61), min_size=1, max_size=50))
def test_rows_are_picked_as_whole_numbers_of_any_size_say(weights: dict[str, float], rows: list[int]) -> None:
    mixing = Mixing(weights)
    found = mixing.picks(np.array(rows))
    assert list(zip(found.sources.tolist(), found.ordinals.tolist(), strict=True)) == [
        picked(mixing, n) for n in rows
    ]


def picked(mixing: Mixing, n: int) -> tuple[int, int]:
    """The recurrence, in Python's numbers."""
    before, after = n, n + 1
    for index, (whole, rest) in enumerate(mixing._rests):
        left = before * rest // whole, after * rest // whole
        if left[0] == left[1]:
            return index, before - left[0]
        before, after = left
    raise AssertionError("the last source takes what is left")


@given(weights, st.integers(0, 2**40))
def test_every_prefix_has_each_ones_share(weights: dict[str, float], n: int) -> None:
    total = sum(weights.values())
    for source, count in Mixing(weights).counts(n).items():
        # Beyond 2^40 rows the rounding of the weights shows too.
        assert abs(count - n * weights[source] / total) <= len(weights) + 1


def test_a_source_of_weight_0_gives_nothing() -> None:
    assert Mixing({"a": 1.0, "b": 0.0}).counts(10) == {"a": 10}


# Shuffles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 100, 5000, SMALL + 1])
def test_each_round_is_another_permutation(length: int) -> None:
    endless = shuffled(length, "seed")
    rounds = [[int(endless[index]) for index in range(k * length, (k + 1) * length)] for k in range(2)]
    assert all(sorted(one) == list(range(length)) for one in rounds)
    some = np.arange(length // 2, length + length // 2 + 1)
    assert endless.take(some).tolist() == [endless[index] for index in some.tolist()]
    if length > 2:
        assert rounds[0] != rounds[1]
        assert rounds[0] != [int(shuffled(length, "other")[index]) for index in range(length)]


def test_the_lengths_at_which_grain_loses_a_number_are_known() -> None:
    assert [length for length in range(2, 70_000) if shuffle._is_lossy(length)] == [
        5,
        17,
        65,
        257,
        1025,
        4097,
        16385,
        65537,
    ]


def test_the_shuffles_stay_what_they_are() -> None:
    """Runs of today must go on with the next version: a change here is a change of every run's data."""
    assert [int(shuffled(10, "umbel")[index]) for index in range(12)] == [1, 3, 8, 9, 5, 0, 7, 2, 6, 4, 9, 4]
    assert [int(shuffled(SMALL + 1, "umbel")[index]) for index in range(6)] == [
        168801,
        19051,
        231779,
        211384,
        101084,
        39892,
    ]


@given(st.integers(1, 500), st.integers(1, 200))
def test_an_epoch_of_documents_is_all_of_them_window_by_window(rows: int, window: int) -> None:
    order = DocumentOrder(rows, window, "seed")
    for epoch in range(2):
        start = epoch * order.epoch_length
        numbers = [order.number(start + position) for position in range(order.epoch_length)]
        found = [number for number in numbers if number is not None]
        assert sorted(found) == list(range(rows))
        assert len(numbers) - len(found) < max(1, order.windows)
        for first in range(0, order.epoch_length, order.window):
            inside = {
                number // order.window
                for number in numbers[first : first + order.window]
                if number is not None
            }
            assert len(inside) <= 1


# The global order -------------------------------------------------------------------------------------


def named(order: GlobalOrder, numbers: Sequence[int]) -> list[tuple[str, int]]:
    """The source and the ordinal of each number."""
    sources, ordinals = order.picks(np.array(numbers))
    return [(order.sources[source], ordinal) for source, ordinal in zip(sources, ordinals, strict=True)]


PHASES = [(0, {"a": 0.5, "b": 0.3, "c": 0.2}), (1000, {"a": 0.1, "c": 0.9})]


@given(st.integers(1, 64), st.integers(0, 3000))
def test_every_row_of_every_source_once_and_in_turn(lanes: int, skip: int) -> None:
    order = GlobalOrder(PHASES, [[skip, skip + 100]], lanes, 7)
    rounds = 2500 // lanes
    picks = order.picks(np.arange(rounds * lanes))
    for source in range(3):
        ordinals = sorted(picks.ordinals[picks.sources == source].tolist())
        assert ordinals == list(range(len(ordinals)))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=4))
def test_numbers_leave_out_the_skipped_ranges_and_nothing_else(gaps: list[tuple[int, int]]) -> None:
    skip, end = [], 0
    for gap, length in gaps:
        skip.append([end + gap, end + gap + length])
        end = skip[-1][1]
    order = GlobalOrder([(0, {"a": 1.0})], skip, 8, 0)
    left_out = {number for first, end in skip for number in range(first, end)}
    expected = [number for number in range(700) if number not in left_out]
    assert [order.number(sequence) for sequence in range(300)] == expected[:300]
    assert order.numbers(range(30, 300)).tolist() == expected[30:300]


def test_a_phase_keeps_every_sources_place() -> None:
    order = GlobalOrder(PHASES, [], 10, 7)
    before = Counter(source for source, _ in named(order, range(1000)))
    assert order.counts(1000) == dict(before)
    later = named(order, range(1000, 1100))
    assert abs(Counter(source for source, _ in later)["a"] - 10) <= 1
    assert min(ordinal for source, ordinal in later if source == "c") == before["c"]
    assert order.counts(1100)["b"] == before["b"]


def test_every_lane_sees_every_source() -> None:
    """With even weights and without dealing anew, even lanes would see one source, odd lanes the other."""
    order = GlobalOrder([(0, {"a": 0.5, "b": 0.5})], [], 8, 7)
    for lane in range(8):
        seen = Counter(source for source, _ in named(order, range(lane, 8 * 100, 8)))
        assert 25 < seen["a"] < 75


def test_a_skipped_range_that_comes_later_moves_nothing_before_it() -> None:
    orders = GlobalOrder(PHASES, [[480, 512]], 16, 7), GlobalOrder(PHASES, [], 16, 7)
    cured, plain = (named(order, order.numbers(range(900)).tolist()) for order in orders)
    assert cured[:480] == plain[:480]
    assert cured[480:600] == plain[512:632]


def test_a_grain_that_shuffles_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffle._check_grain.cache_clear()
    monkeypatch.setattr(shuffle, "SHUFFLED", [7] * len(shuffle.PROBED))
    shuffled(SMALL - 1, "x")
    with pytest.raises(UmbelError, match=r"grain: version \S+ shuffles otherwise"):
        shuffled(SMALL, "x")
