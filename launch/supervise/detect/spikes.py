"""A loss that leaves its range and does not return, or is no number: what it was, and from where to go on."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from checkpoint.folders import steps
from configs.schema import RunConfig
from launch.skip_data import TO_HERE
from launch.supervise.finding import Finding
from record.events import read_events, standing
from record.folder import RunFolder
from record.jsonl import tail_lines
from record.metrics import KEYS, lineage

WINDOW = 100
"""Steps that say what is usual."""

PATIENCE = 30
"""Steps that the loss may stay outside: a large run that gets over a spike does so in about as many."""

DEVIATIONS = 8.0
NATS = 0.2
"""What leaves the range: further above the median than so many robust deviations, and so much at least."""

_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, of a normal distribution."""

_TAIL = 1 << 17
"""Bytes of metrics.jsonl that hold as many lines."""

_LOOK_SECONDS = 5.0
_NOT_FINITE = re.compile(
    r"step (\d+)(?:, rank [\d, ]+)?: the (?:loss is -?(?:nan|inf)|gradient norm is not finite)"
)

Line = dict[str, Any]
Event = dict[str, Any]


class Spike(NamedTuple):
    """``step``: the first outside; ``loss``: of the newest steps; ``usual``: before. Medians, in nats."""

    step: int
    loss: float
    usual: float


class SpikeDetector:
    """Looks at the metrics' end now and then; tells each spike once, across starts."""

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        self.folder, self.config = folder, config
        self._looked, self._size = float("-inf"), -1

    def look(self, now: float) -> Sequence[Finding]:
        if not 0 <= now - self._looked >= _LOOK_SECONDS or self._size == (size := self._metrics_size()):
            return []
        self._looked, self._size = now, size
        events = read_events(self.folder)
        lines = lineage(tail_lines(self.folder.metrics, _TAIL, KEYS), events)
        spike = find_spike(_since(lines, events, self.config))
        return [] if spike is None else [self._finding(spike, events)]

    def _finding(self, spike: Spike, events: Sequence[Event]) -> Finding:
        policy = self.config.supervision.on_spike
        text = (
            f"the loss rose from {spike.usual:.3f} to {spike.loss:.3f} at step {spike.step} and stays there"
        )
        facts: dict[str, Any] = spike._asdict()
        if policy == "rollback":
            facts.update(back_before(self.folder, spike.step, events) or {})
        return Finding(kind="spike", text=text, fatal=policy != "tell", facts=facts)

    def _metrics_size(self) -> int:
        return self.folder.metrics.stat().st_size if self.folder.metrics.exists() else 0


def find_spike(losses: Sequence[tuple[int, float]]) -> Spike | None:
    """The spike with which ``losses``, (step, loss) by step, end: the newest `PATIENCE` of them are all above
    the range of the `WINDOW` before. Nothing can be said of fewer."""
    usual = [loss for _, loss in losses[-WINDOW - PATIENCE : -PATIENCE]]
    newest = losses[-PATIENCE:]
    if len(usual) < WINDOW:
        return None
    middle = statistics.median(usual)
    deviation = _SIGMA * statistics.median(abs(loss - middle) for loss in usual)
    limit = middle + max(DEVIATIONS * deviation, NATS)
    if any(loss <= limit for _, loss in newest):
        return None
    return Spike(newest[0][0], statistics.median(loss for _, loss in newest), middle)


def back_before(folder: RunFolder, step: int, events: Iterable[Event]) -> dict[str, Any] | None:
    """``{"to": …, "skip": "to-here"}`` of the rollback that undoes a step and leaves out what was read since.

    None where no checkpoint is that old, or where the run has gone back to that one before: it did not help.
    """
    older = [saved for saved in steps(folder.checkpoints) if saved < step]
    if not older or max(older) in (event["to"] for event in events if event["event"] == "rollback"):
        return None
    return {"to": max(older), "skip": TO_HERE}


def is_nan(failed: Event) -> bool:
    """Whether a ``failed`` event tells of a loss or a gradient that is not finite."""
    return _bad_step(failed) is not None


def after_nan(folder: RunFolder, failed: Iterable[Event]) -> dict[str, Any] | None:
    """`back_before` the step at which one of a start's ``failed`` events says that the loss was no number."""
    bad = [step for step in map(_bad_step, failed) if step is not None]
    return back_before(folder, min(bad), read_events(folder)) if bad else None


def _bad_step(failed: Event) -> int | None:
    found = _NOT_FINITE.search(failed.get("error") or "")
    return int(found[1]) if found else None


def _since(lines: Iterable[Line], events: Sequence[Event], config: RunConfig) -> list[tuple[int, float]]:
    """Step and loss since the newest spike that was told, and since the mixture last changed."""
    told = max(
        (event["step"] + PATIENCE for event in standing(events) if event["event"] == "spike"), default=0
    )
    begun = [phase.from_tokens for phase in config.data.phases]
    length = config.data.sequence_length
    kept = [line for line in lines if line["step"] > told and line.get("loss") is not None]
    if not kept:
        return []
    now = kept[-1]["sequences"] * length
    first = max((tokens for tokens in begun if tokens <= now), default=0.0)
    return [(line["step"], line["loss"]) for line in kept if line["sequences"] * length >= first]
