"""Finding the nodes that do not work with the others, from tests of groups alone.

A group passes if none of its nodes is bad and no link between two of them is. Groups of one round have no
node in common, so they are tested at the same time. Pure: a generator yields rounds of groups, and is sent
which of them passed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

Group = list[str]
Rounds = Generator[list[Group], list[bool], list[str]]
"""Yields rounds, is sent their outcomes, returns the nodes that work together."""


def bisect(nodes: Sequence[str]) -> Rounds:
    """The largest part that this finds of ``nodes`` that passes as one group, in their order.

    A node is left out only if it is bad or has a bad link, and what is returned has passed as a group. Empty:
    no two nodes pass. Bad nodes take at most 5 rounds while three quarters are good; one bad link takes
    3 log2(n) + 3; whatever is bad 4 n.
    """
    if (yield [list(nodes)])[0]:
        return list(nodes)
    pairs = yield from _first_pairs(nodes)
    if not pairs:
        return []
    known = [node for pair in pairs for node in pair]
    known += yield from _beside(known, [node for node in nodes if node not in known])
    core = pairs[0]
    kept = yield from _extend(core, [node for node in nodes if node in known and node not in core])
    return [node for node in nodes if node in kept]


def _first_pairs(nodes: Sequence[str]) -> Generator[list[Group], list[bool], list[Group]]:
    """Everybody with somebody, then with somebody else, until some pairs pass; those."""
    for pairs in round_robin(nodes):
        outcomes = yield pairs
        if any(outcomes):
            return [pair for pair, passes in zip(pairs, outcomes, strict=True) if passes]
    return []


def _beside(known: Group, suspects: Group) -> Generator[list[Group], list[bool], Group]:
    """The suspects that pass, each beside a node that is known to be good."""
    good: Group = []
    for start in range(0, len(suspects), len(known)):
        some = suspects[start : start + len(known)]
        outcomes = yield [[trusted, suspect] for trusted, suspect in zip(known, some, strict=False)]
        good += [suspect for suspect, passes in zip(some, outcomes, strict=True) if passes]
    return good


def _extend(
    core: Group, others: Group, is_known_to_fail: bool = False
) -> Generator[list[Group], list[bool], Group]:
    """The core with as many of the others as it passes with."""
    if not others or (not is_known_to_fail and (yield [core + others])[0]):
        return core + others
    if len(others) == 1:
        return core
    first, second = _halves(others)
    grown = yield from _extend(core, first)
    # If it is not the first half that fails, it is the second.
    return (yield from _extend(grown, second, len(grown) == len(core) + len(first)))


def _halves(group: Group) -> tuple[Group, Group]:
    return group[: len(group) // 2], group[len(group) // 2 :]


def round_robin(nodes: Sequence[str]) -> Iterator[list[Group]]:
    """Rounds of pairs in which each node meets each other one once: one stays, the others go round."""
    seats: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        facing = zip(seats[:half], reversed(seats[half:]), strict=True)
        yield [[a, b] for a, b in facing if a is not None and b is not None]
        seats = [seats[0], seats[-1], *seats[1:-1]]
