"""Each step's numbers, read from the device every `tracker.log_every` steps and before each save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from base.errors import RunFailed
from configs.schema import RunConfig
from train.distributed import World
from train.loop import StepRecord

Sink = Callable[[list[dict[str, Any]]], None]
Consumed = Callable[[int], dict[str, dict[str, float]]]
"""A number of sequences to what they took of each source (`data.order.consumption`)."""


class Metrics:
    """Collects step records; `flush` turns them into lines for the sinks.

    Args:
        sinks: each is called on rank 0 with the lines of a flush: metrics.jsonl, the tracker.
        mfu: model FLOP/s utilisation for a rate in tokens per second, or None where no peak is known.
        last_saved: step of the newest checkpoint, 0 where there is none.
        consumed: what the run has taken of each source by then; goes into a flush's last line as ``sources``.
    """

    def __init__(
        self,
        config: RunConfig,
        world: World,
        sinks: Sequence[Sink],
        mfu: Callable[[float], float | None],
        last_saved: Callable[[], int] = lambda: 0,
        consumed: Consumed = lambda _: {},
    ) -> None:
        self.config, self.world, self.sinks, self.mfu = config, world, sinks, mfu
        self.last_saved, self.consumed = last_saved, consumed
        self.pending: list[StepRecord] = []

    def after_step(self, record: StepRecord) -> None:
        self.pending.append(record)
        if self._is_due(record.position.step):
            self.flush()

    def _is_due(self, step: int) -> bool:
        """The first line soon, for a person waits for it; and before work that is none of the steps' time."""
        others = (self.config.evaluation.every, self.config.samples.every)
        return step == 1 or any(
            every and step % every == 0 for every in (self.config.tracker.log_every, *others)
        )

    def flush(self) -> None:
        """Read what is pending and hand it on. A checkpoint must not overtake its steps' lines.

        Raises:
            RunFailed: a loss or gradient norm is not finite; names the step and the ranks.
        """
        records, self.pending = self.pending, []
        if not records:
            return
        local = torch.stack([record.metrics.loss for record in records]).double().cpu()
        norms = torch.stack([record.metrics.grad_norm.float() for record in records]).cpu()
        seconds = time.perf_counter() - records[0].began
        losses = self.world.sum_floats(local.clone())
        finite = torch.isfinite(losses) & torch.isfinite(norms)
        good = len(records) if finite.all() else int((~finite).nonzero()[0])
        if self.world.is_first and good:
            lines = self._lines(
                records[:good], losses.tolist(), norms.tolist(), seconds * good / len(records)
            )
            for sink in self.sinks:
                sink(lines)
        if good < len(records):
            self._fail(records[good].position.step, float(losses[good]), bool(torch.isfinite(local[good])))

    def _lines(
        self, records: list[StepRecord], losses: list[float], norms: list[float], seconds: float
    ) -> list[dict[str, Any]]:
        rate = sum(record.tokens for record in records) / seconds
        mfu = self.mfu(rate)
        common = {
            "tokens_per_second": round(rate, 1),
            "mfu": None if mfu is None else round(mfu, 4),
            "step_seconds": round(seconds / len(records), 4),
            "world_size": self.world.size,
            "institution": self.config.cluster.institution,
        }
        lines: list[dict[str, Any]] = [
            {
                "step": record.position.step,
                "sequences": record.position.sequences,
                "tokens": record.position.tokens,
                "loss": loss,
                "lr": record.lr,
                "grad_norm": norm,
                "data_wait": round(record.data_wait, 5),
                **common,
            }
            for record, loss, norm in zip(records, losses, norms, strict=False)
        ]
        if sources := self.consumed(records[-1].position.sequences):
            lines[-1]["sources"] = sources
        return lines

    def _fail(self, step: int, loss: float, mine_is_finite: bool) -> None:
        ranks = [0] * self.world.size
        ranks[self.world.rank] = int(not mine_is_finite)
        bad = [str(rank) for rank, count in enumerate(self.world.sum(ranks)) if count]
        where = f"step {step}" + (f", rank {', '.join(bad)}" if bad else "")
        what = f"the loss is {loss}" if bad else "the gradient norm is not finite"
        saved = self.last_saved()
        kept = f"the checkpoint of step {saved} is good" if saved else "no checkpoint was saved before"
        raise RunFailed(what, where=where, fix=f"{kept}: lower optimizer.lr, or look at that step's data")
