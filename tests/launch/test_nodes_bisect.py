"""Whatever is bad among nodes and links is left out, and nothing else, in few rounds."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from launch.nodes.bisect import bisect, round_robin

Link = frozenset[str]


def search(nodes: list[str], bad: set[str], links: set[Link]) -> tuple[list[str], int]:
    """What a bisection keeps in a world where these are bad, and in how many rounds."""
    rounds, answer, count = bisect(nodes), None, 0
    try:
        while True:
            groups = rounds.send(answer)
            members = [node for group in groups for node in group]
            assert len(members) == len(set(members)), "a node is in one group of a round at most"
            assert all(len(group) > 1 for group in groups), "nobody meets himself"
            answer = [passes(set(group), bad, links) for group in groups]
            count += 1
    except StopIteration as end:
        return end.value, count


def passes(group: set[str], bad: set[str], links: set[Link]) -> bool:
    return not group & bad and not any(link <= group for link in links)


def names(count: int) -> list[str]:
    return [f"node{number}" for number in range(count)]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[str], set[str], set[Link]]:
    nodes = names(draw(st.integers(2, 40)))
    bad = draw(st.sets(st.sampled_from(nodes)))
    pairs = st.lists(st.sampled_from(nodes), min_size=2, max_size=2, unique=True).map(frozenset)
    return nodes, bad, draw(st.sets(pairs, max_size=6))


@given(worlds())
def test_what_is_kept_passes_and_only_what_is_bad_is_left_out(
    world: tuple[list[str], set[str], set[Link]],
) -> None:
    nodes, bad, links = world
    kept, rounds = search(nodes, bad, links)
    assert passes(set(kept), bad, links)
    assert kept == [node for node in nodes if node in kept]
    touched = bad.union(*links)
    if kept:
        assert set(nodes) - set(kept) <= touched, "a good node with good links stays"
    else:
        assert not any(passes({a, b}, bad, links) for a in nodes for b in nodes if a < b)
    assert rounds <= 4 * len(nodes)


@given(st.integers(3, 200), st.data())
def test_a_quarter_of_bad_nodes_is_found_in_five_rounds(count: int, data: st.DataObject) -> None:
    nodes = names(count)
    bad = data.draw(st.sets(st.sampled_from(nodes), min_size=1, max_size=max(1, count // 4)))
    kept, rounds = search(nodes, bad, set())
    assert kept == [node for node in nodes if node not in bad]
    assert rounds <= 5


@given(st.integers(3, 200), st.data())
def test_one_bad_link_costs_one_of_its_nodes(count: int, data: st.DataObject) -> None:
    nodes = names(count)
    link = data.draw(st.lists(st.sampled_from(nodes), min_size=2, max_size=2, unique=True).map(frozenset))
    kept, rounds = search(nodes, set(), {link})
    assert len(set(nodes) - set(kept)) == 1
    assert not link <= set(kept)
    assert rounds <= 3 * math.ceil(math.log2(count)) + 3


def test_nodes_that_are_all_well_take_one_round() -> None:
    assert search(names(48), set(), set()) == (names(48), 1)


@given(st.integers(2, 30))
def test_round_robin_brings_everybody_together_once(count: int) -> None:
    pairs = [frozenset(pair) for pairs in round_robin(names(count)) for pair in pairs]
    assert len(pairs) == len(set(pairs)) == count * (count - 1) // 2
