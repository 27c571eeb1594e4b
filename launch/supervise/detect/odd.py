"""Which ranks are the odd ones out when a run hangs, and how to say so in a line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from launch.supervise.stacks import Frame, Stack
from record.heartbeats import Beat

NAMED = 4
"""Odd ranks, or groups of ranks, that a line describes."""

_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")
_WRAPPERS = ("wrapper", "inner", "log_wrapper", "wait")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One rank of a hanging run. ``why``: why it has no stack, where it has none."""

    rank: int
    node: str
    beat: Beat
    stack: Stack = ()
    why: str = "could not be looked at"

    @property
    def collective(self) -> str | None:
        """The collective in which it waits for others, or None."""
        return collective(self.stack)

    @property
    def place(self) -> str:
        """Where it is, in a few words: ``in data/stream.py:88``."""
        if not self.stack:
            return self.why
        if self.collective is not None:
            return f"in {self.collective}"
        return f"in {next((frame for frame in self.stack if frame.is_ours), self.stack[0])}"


def collective(stack: Stack) -> str | None:
    """The collective whose end a main thread waits for; None if it does something else."""
    inner: list[Frame] = []
    for frame in stack:
        if not frame.file.startswith(_COLLECTIVES):
            break
        inner.append(frame)
    names = [frame.function for frame in inner if frame.function not in _WRAPPERS]
    return next(iter(names or [frame.function for frame in inner]), None)


def odd_ones(ranks: Collection[Seen]) -> list[Seen]:
    """Those for whom the others wait; empty where all stand alike, or where it cannot be told.

    In this order, each only if it names no more ranks than it leaves: those without a stack (gone, on a
    silent node, stuck in the kernel), those outside a collective in which others wait, those that are behind,
    those of smaller groups of equal stacks.
    """
    newest = max((seen.beat.step for seen in ranks), default=0)
    largest = max((len(group) for group in grouped(ranks)), default=0)
    small = {seen.rank for group in grouped(ranks) if len(group) < largest for seen in group}
    tests: tuple[Callable[[Seen], bool], ...] = (
        lambda seen: not seen.stack,
        lambda seen: seen.collective is None,
        lambda seen: seen.beat.step < newest,
        lambda seen: seen.rank in small,
    )
    for test in tests:
        odd = [seen for seen in ranks if test(seen)]
        if 0 < 2 * len(odd) <= len(ranks):
            return odd
    return []


def grouped(ranks: Collection[Seen]) -> list[list[Seen]]:
    """Ranks with equal stacks, the largest group first."""
    groups: dict[object, list[Seen]] = {}
    for seen in ranks:
        groups.setdefault(seen.stack or seen.why, []).append(seen)
    return sorted(groups.values(), key=len, reverse=True)


def describe(ranks: Sequence[Seen], odd: Sequence[Seen], seconds: float) -> str:
    """One line: what most do, then what the odd ones do."""
    odd_ranks = {seen.rank for seen in odd}
    rest = [seen for seen in ranks if seen.rank not in odd_ranks]
    groups = [*grouped(rest)[: 1 if odd else NAMED], *grouped(odd)[:NAMED]]
    told = [_told(group, by_name=group[0].rank in odd_ranks) for group in groups]
    return f"{', '.join(told)} for {seconds:.0f} s"


def _told(group: Sequence[Seen], *, by_name: bool) -> str:
    one, first = len(group) == 1, group[0]
    who = _names(group) if by_name or one else f"{len(group)} ranks"
    if not first.stack:
        return f"{who}: {first.why}"
    if first.collective is not None:
        does = f"{'waits' if one else 'wait'} {first.place}"
    else:
        does = f"{'is' if one else 'are'} {first.place}"
    return does_at(who, does, first.beat)


def does_at(who: str, does: str, beat: Beat) -> str:
    """``rank 3 is in … (step 812)``; before any step, what it prepares."""
    return f"{who} {does} ({at(beat)})"


def at(beat: Beat) -> str:
    """``step 812``, ``saving at step 800``, ``restoring``."""
    if beat.phase == "step":
        return f"step {beat.step}"
    return f"{beat.phase} at step {beat.step}" if beat.step else beat.phase


def _names(group: Sequence[Seen]) -> str:
    nodes: Mapping[str, None] = dict.fromkeys(seen.node for seen in group)
    ranks = ", ".join(str(seen.rank) for seen in group[:NAMED])
    more = f" and {len(group) - NAMED} more" if len(group) > NAMED else ""
    return f"rank{'s' if len(group) > 1 else ''} {ranks}{more} on {', '.join([*nodes][:NAMED])}"
