"""Which nodes sum numbers together as they should: rounds of groups, until it is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from launch.nodes.bisect import Group, bisect
from launch.nodes.errand import Answers, Errand, Found
from launch.nodes.pairs import Plan, write_plan

FIRST_SECONDS, LATER_SECONDS = 20.0, 10.0
"""After which a node gives the others up, in the first round and in those of a search."""

IMPORT_SECONDS = 20.0
"""More that the asking side waits."""

BUDGET_SECONDS = 90.0
"""In which a round may still begin. Only a search has more than one."""

CUDA_NUMBERS, CPU_NUMBERS = 32 << 20, 2 << 20
SLOW, SLOW_CPU = 0.5, 0.1
"""Share of the usual, or of the round's best, below which a group is too slow."""


class Met(NamedTuple):
    """``failing``: reasons by node. ``rate``: GB/s of all nodes at once, where that went well."""

    failing: dict[str, str]
    rate: float | None
    notes: list[str]


class Meetings:
    """Has nodes meet.

    Args:
        folder: shared; each round has a folder of its own in it.
        addresses: of the nodes.
        usual: GB/s of all these nodes at earlier starts; None: not known.
    """

    def __init__(
        self, errand: Errand, folder: Path, addresses: dict[str, str], cpu: bool, usual: float | None
    ) -> None:
        self.errand, self.folder, self.addresses, self.cpu, self.usual = errand, folder, addresses, cpu, usual
        self.slow = SLOW_CPU if cpu else SLOW
        self.rounds, self.best, self.refused = 0, 0.0, False
        self.words: dict[str, str] = {}

    def hold(self, nodes: Sequence[str]) -> Met:
        """All at once; if that is not well, in parts, while there is time.

        Where no two nodes can, nothing tells them from their network: of two both fail, of more none does.
        When the time is over, those fail that met nobody.
        """
        kept = self._search(nodes)
        if self.refused or (not kept and len(nodes) > 2):
            return Met({}, None, [f"no two of the nodes were seen to all-reduce: {self.words[nodes[0]]}"])
        words = {
            node: f"all-reduce with the others: {self.words[node]}" for node in nodes if node not in kept
        }
        return Met(words, self.best if self.rounds == 1 else None, [])

    def _search(self, nodes: Sequence[str]) -> list[str]:
        """The nodes that work together."""
        until, met = time.monotonic() + BUDGET_SECONDS, set[str]()
        search = bisect(nodes)
        groups = next(search)
        while True:
            rates = self._round(groups)
            met.update(*(group for group, rate in zip(groups, rates, strict=True) if rate is not None))
            try:
                groups = search.send([rate is not None for rate in rates])
            except StopIteration as end:
                return list(end.value)
            if time.monotonic() > until or self.refused:
                return [node for node in nodes if node in met]

    def _round(self, groups: list[Group]) -> list[float | None]:
        """GB/s of each group; None of one that fails, hangs or is too slow."""
        self.rounds += 1
        folder = self.folder / f"round-{self.rounds:03d}"
        folder.mkdir()
        seconds = FIRST_SECONDS if self.rounds == 1 else LATER_SECONDS
        write_plan(folder, Plan(
            groups=groups, addresses=self.addresses, cpu=self.cpu,
            numbers=CPU_NUMBERS if self.cpu else CUDA_NUMBERS, seconds=seconds,
        ))  # fmt: skip
        module = ["launch.nodes.pairs", str(folder)]
        nodes = [node for group in groups for node in group]
        known = partial(_all_known, groups)
        answers = self.errand.send(module, nodes, folder, seconds + IMPORT_SECONDS, known)
        self.refused = answers.refused
        rates = [self._rate(group, answers) for group in groups]
        self.best = max([self.best, *(rate or 0.0 for rate in rates)])
        least = self.usual if self.rounds == 1 else self.best
        return [self._fast_enough(group, rate, least) for group, rate in zip(groups, rates, strict=True)]

    def _rate(self, group: Group, answers: Answers) -> float | None:
        """Of the slowest: all wait for it."""
        told = {node: answers.found[node].content for node in group if node in answers.found}
        rates = [float(content["rate"]) for content in told.values() if "rate" in content]
        if len(rates) == len(group):
            return min(rates)
        errors = {node: str(content["error"]) for node, content in told.items() if "error" in content}
        # Whoever did not answer may not have been waited for: the others' words say more.
        words = [*errors.values(), *(answers.silent[node] for node in group if node in answers.silent)]
        self.words |= dict.fromkeys(group, words[0]) | errors
        return None

    def _fast_enough(self, group: Group, rate: float | None, usual: float | None) -> float | None:
        if rate is None or usual is None or rate >= self.slow * usual:
            return rate
        self.words |= dict.fromkeys(group, f"{rate:.2f} GB/s, {usual:.2f} are usual")
        return None


def _all_known(groups: list[Group], found: Found) -> bool:
    """Whether each group has met or failed: who waits for one that failed need not be waited for."""
    return all(
        all(node in found for node in group)
        or any("error" in found[node].content for node in group if node in found)
        for group in groups
    )
