"""Held-out loss of a run's checkpoint, in one process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from base.errors import UmbelError
from configs.schema import RunConfig
from data.manifest import check_unchanged
from data.prepare import prepare_run
from data.stream import BatchStream, MicroBatch
from record.events import latest, read_events
from record.folder import RunFolder
from train.distributed import World
from train.hooks.evaluation import held_out_losses
from train.loss import cross_entropy_sum
from train.masking import logits_of
from train.quiet import quiet
from train.weights import RunModel, load_model


def evaluate_run(run: str | Path, step: int | None = None, sequences: int = 64) -> dict[str, float]:
    """Nats per target token of each source, on its first ``sequences`` held-out rows.

    The same numbers as `train.hooks.evaluation` reports during training, on the GPU where there is one.

    Raises:
        UmbelError: no such run or checkpoint, data that has changed since, or none held out.
    """
    if sequences < 1:
        raise UmbelError(f"must be at least 1, not {sequences}", where="--sequences")
    quiet()
    loaded = load_model(run, step)
    stream = _stream(loaded)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(rank=0, size=1, device=device, control=None)
    micro_batch = _micro_batch(loaded.config, loaded.folder)
    losses = held_out_losses(PlainScorer(loaded, device), stream, world, sequences, micro_batch)
    if not losses:
        fix = "train with data.held_out above 0"
        raise UmbelError("holds nothing to evaluate on", where="data.held_out", fix=fix)
    return losses


class PlainScorer:
    """Evaluates a plain model as the engines do."""

    def __init__(self, loaded: RunModel, device: torch.device) -> None:
        self.model, self.device = loaded.model.to(device), device
        self.bf16 = loaded.config.model.precision == "bf16"

    @torch.no_grad()
    def evaluate(self, batches: Iterable[MicroBatch]) -> tuple[float, int]:
        """Summed loss in nats, and count of targets."""
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for batch in batches:
            position_ids = None if batch.position_ids is None else self._to_device(batch.position_ids)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits = logits_of(self.model, self._to_device(batch.input_ids), position_ids)
            total += cross_entropy_sum(logits, self._to_device(batch.labels))
            count += batch.targets
        return float(total), count

    def _to_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def _stream(loaded: RunModel) -> BatchStream:
    config = loaded.config
    prepared = prepare_run(config)
    check_unchanged(loaded.data, prepared.manifest)
    return BatchStream(prepared, config)


def _micro_batch(config: RunConfig, folder: RunFolder) -> int:
    """As in training: what fitted there fits here."""
    start = latest(read_events(folder), "start")
    configured = config.parallelism.micro_batch
    return start["micro_batch"] if start else 1 if configured == "auto" else configured
