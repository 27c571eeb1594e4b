"""From what nodes tell of themselves to which are fit, and why the others are not, in words. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from base.files import human_bytes
from launch.nodes.facts import Gpu, NodeFacts
from launch.nodes.reference import usual

LEAST_TMP, LITTLE_SHM = 100 << 20, 1 << 30
MOST_SKEW = 30.0
"""Seconds by which a clock may be wrong: heartbeats and deadlines are compared across nodes."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a node must reach.

    Attributes:
        gpus: devices on each node; None: as many as the best of them.
        token: what each node must have read in the shared folder.
        own: share of its own usual rate below which a node fails; ``peers``: of the other nodes' now.
        peak: share of what the maker prints.
        taken: share of a device's memory that others may have.
    """

    gpus: int | None = None
    token: str = ""
    own: float = 0.85
    peers: float = 0.85
    peak: float = 0.35
    taken: float = 0.1


CPU_SHARE = 0.4
"""Cores are shared, and their rates with them: only a node that is far off says something."""


class Looked(NamedTuple):
    """A node's facts, when they were asked for and seen (Unix seconds, the asking side's clock)."""

    facts: NodeFacts
    asked: float
    seen: float


@dataclass(frozen=True)
class Verdict:
    """Reasons why nodes fail, and what is worth a word but no reason, by node in their order."""

    failing: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def words(self) -> dict[str, str]:
        """Why each failing node fails, in one line."""
        return {node: "; ".join(reasons) for node, reasons in self.failing.items()}


def judge(
    seen: Mapping[str, Looked],
    limits: Limits,
    earlier: Callable[[str, str], Sequence[float]] = lambda _node, _device: (),
) -> Verdict:
    """Judge nodes by themselves, by their past and by one another.

    Args:
        earlier: node and device to the node's rates at earlier starts.
    """
    peers = _Peers([each.facts for each in seen.values()], limits)
    verdict = Verdict()
    for node, each in seen.items():
        facts = each.facts
        reasons = [*_folder(facts, limits), *_clock(each), *_machine(facts), *_gpus(facts, limits, peers)]
        reasons += [*facts.errors, *_software(facts, peers), *_unfinished(facts, peers)]
        reasons += [*_rates(facts, limits, peers, earlier(node, facts.device)), *_hub(facts, peers)]
        if reasons:
            verdict.failing[node] = reasons
        if notes := [*_notes(facts)]:
            verdict.notes[node] = notes
    return verdict


def skew(each: Looked) -> float:
    """Seconds by which a node's clock is surely ahead of the asking side's; negative: behind."""
    return max(0.0, each.facts.wrote - each.seen) or min(0.0, each.facts.began - each.asked)


class _Peers:
    """What the nodes are together, for one to be compared with."""

    def __init__(self, nodes: Sequence[NodeFacts], limits: Limits) -> None:
        self.nodes = nodes
        self.gpus = limits.gpus or max((len(facts.gpus) for facts in nodes), default=0)
        self.hub_answers = 2 * sum(facts.hub == "" for facts in nodes) > len(nodes)
        self.torch = _usual_word([facts.torch for facts in nodes])
        self.code = _usual_word([facts.code for facts in nodes])

    def are_done(self, facts: NodeFacts) -> bool:
        """Whether two thirds of the other nodes have come to an end."""
        others = [each.done for each in self.nodes if each is not facts]
        return bool(others) and 3 * sum(others) >= 2 * len(others)

    def links(self, gpu: Gpu) -> int:
        """The most NVLinks that a device of this kind has up."""
        return max(other.links or 0 for facts in self.nodes for other in facts.gpus if other.name == gpu.name)

    def rate(self, facts: NodeFacts) -> float | None:
        """The median of the other nodes' devices of the same kind; None of fewer than two nodes."""
        others = [each for each in self.nodes if each is not facts and each.device == facts.device]
        rates = [rate for each in others for rate in each.rates]
        return statistics.median(rates) if sum(bool(each.rates) for each in others) >= 2 else None


def _folder(facts: NodeFacts, limits: Limits) -> Iterator[str]:
    if facts.token != limits.token:
        yield "does not see what others write to the shared folder"


def _clock(each: Looked) -> Iterator[str]:
    off = skew(each)
    if abs(off) > MOST_SKEW:
        yield f"its clock is {abs(off):.0f} s {'ahead' if off > 0 else 'behind'}"


def _machine(facts: NodeFacts) -> Iterator[str]:
    if facts.disk.get("tmp", LEAST_TMP) < LEAST_TMP:
        yield f"/tmp has {human_bytes(facts.disk['tmp'])} free"
    if facts.memory_free < facts.memory / 20:
        yield f"{human_bytes(facts.memory_free)} of {human_bytes(facts.memory)} memory are free"
    if not facts.port:
        yield "gives out no port to listen on"


def _gpus(facts: NodeFacts, limits: Limits, peers: _Peers) -> Iterator[str]:
    if len(facts.gpus) < peers.gpus:
        yield f"{len(facts.gpus)} of {peers.gpus} GPUs"
    yield from facts.lost
    for index, gpu in enumerate(facts.gpus):
        yield from (f"device {index}: {words}" for words in _gpu(gpu, limits, peers))


def _gpu(gpu: Gpu, limits: Limits, peers: _Peers) -> Iterator[str]:
    if gpu.uncorrected:
        yield f"{gpu.uncorrected} uncorrected memory errors (ECC)"
    if gpu.remap_failed:
        yield "a broken row of its memory could not be replaced"
    elif gpu.remap_pending:
        yield "waits for a reset to replace a row of its memory"
    if gpu.links is not None and 0 < gpu.links < peers.links(gpu):
        yield f"{gpu.links} of {peers.links(gpu)} NVLinks are up"
    if gpu.memory - gpu.free > limits.taken * gpu.memory:
        yield f"{human_bytes(gpu.memory - gpu.free)} of {human_bytes(gpu.memory)} are taken by somebody else"


def _software(facts: NodeFacts, peers: _Peers) -> Iterator[str]:
    if facts.torch != peers.torch:
        yield f"torch {facts.torch or 'is missing'}, {peers.torch} elsewhere"
    if facts.code != peers.code:
        yield f"sees other code ({facts.code}) than {peers.code}"


def _unfinished(facts: NodeFacts, peers: _Peers) -> Iterator[str]:
    """Where all are slow, as with a cold file system, no node is to blame."""
    if not facts.done and peers.are_done(facts):
        yield f"hangs in {facts.stage}"


def _rates(facts: NodeFacts, limits: Limits, peers: _Peers, earlier: Sequence[float]) -> Iterator[str]:
    if not facts.rates:
        return
    slowest = min(facts.rates)
    which = f"device {facts.rates.index(slowest)}: " if len(facts.rates) > 1 else ""
    own, others = usual(earlier), peers.rate(facts)
    shares = (limits.own, limits.peers) if facts.gpus else (CPU_SHARE, CPU_SHARE)
    if own is not None and slowest < shares[0] * own:
        yield f"{which}matmul at {slowest / own:.0%} of its own median of {len(earlier)} starts"
    elif others is not None and slowest < shares[1] * others:
        yield f"{which}matmul at {slowest / others:.0%} of the other nodes' median"
    elif facts.peaks and slowest < limits.peak * min(facts.peaks):
        yield f"{which}matmul at {slowest / min(facts.peaks):.0%} of what a {facts.device} can do"


def _hub(facts: NodeFacts, peers: _Peers) -> Iterator[str]:
    if facts.hub and peers.hub_answers:
        yield f"cannot reach the hub, which others can: {facts.hub}"


def _notes(facts: NodeFacts) -> Iterator[str]:
    if facts.hub:
        yield f"the hub does not answer ({facts.hub}); without internet set cluster.internet=false"
    if facts.shm_free is not None and facts.shm_free < LITTLE_SHM:
        yield f"/dev/shm has only {human_bytes(facts.shm_free)} free"
    if not facts.done:
        yield f"no end of {facts.stage}"
    for index, gpu in enumerate(facts.gpus):
        if gpu.slowed:
            heat = f", {gpu.temperature} °C" if gpu.temperature is not None else ""
            yield f"device {index}: held down: {', '.join(gpu.slowed)}{heat}"
        if gpu.link_errors:
            yield f"device {index}: {gpu.link_errors} NVLink errors"


def _usual_word(words: Sequence[str | None]) -> str | None:
    return Counter(words).most_common(1)[0][0] if words else None
