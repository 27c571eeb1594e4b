"""What a run would be and need, in numbers, before anything starts."""

from __future__ import annotations

import dataclasses
import math
import shutil
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.devices import cuda_devices
from base.errors import UmbelError
from configs.batch import check_batch, sequences_at
from configs.check import warnings as config_warnings
from configs.schema import Checkpoint, RunConfig
from launch.screens.plan import render
from record.events import read_events
from record.folder import RunFolder
from record.metrics import read_metrics
from train.cadence import expected

if TYPE_CHECKING:
    from train.memory import Memory

__all__ = ["Plan", "checkpoints_kept", "make_plan", "render"]

_RECENT = 50
"""How many of the newest steps tell a run's speed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in numbers; sizes in bytes, times in seconds. Every field is plain data, for JSON."""

    run: str
    model: str
    parallelism: str
    precision: str
    world_size: int
    parameters: int
    trainable: int
    micro_batch: int
    accumulation: int
    global_batch: int
    sequence_length: int
    steps: int
    sequences: int
    tokens: int
    flops_per_token: float
    memory: dict[str, int]
    memory_needed: int
    memory_available: int | None
    host_memory_needed: int
    host_memory_per_node: int
    fits: bool | None
    saves: str
    save_interval: float | None
    lost_share: float | None
    checkpoint_bytes: int
    checkpoints_kept: int
    disk_needed: int
    disk_free: int
    tokens_per_second: float | None
    seconds: float | None
    problem: str | None
    warnings: list[str]

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def make_plan(config: RunConfig, world_size: int) -> Plan:
    """Work out a run on ``world_size`` processes. Builds the model without memory; starts nothing.

    A model that does not fit is no error here: the plan says so in ``fits`` and ``problem``. Where nobody
    says what memory the devices have, whether it fits is not known, and a micro-batch that is chosen at the
    start is taken to be 1.

    Raises:
        UmbelError: the model, the batch or the shape makes no sense.
    """
    from train.document_mask import check_document_mask
    from train.flops import flops_per_token
    from train.memory import USABLE, estimate, state_bytes
    from train.model import check_shape, meta_model, model_config, parameter_count

    check_batch(config, world_size)
    check_shape(config)
    check_document_mask(config)
    count = parameter_count(meta_model(config.model))
    per_node = -(-world_size // config.cluster.nodes)
    available = _available(config, per_node)
    micro_batch, problem = _micro_batch(config, world_size, available)
    memory = estimate(config, world_size, micro_batch)
    sequences = sequences_at(config.schedule, config.schedule.steps)
    tokens = sequences * config.data.sequence_length
    folder = RunFolder.of(config)
    rate, done = _rate(folder, world_size)
    return Plan(
        run=config.run.name,
        model=_model_name(config),
        parallelism=_parallelism_name(config),
        precision=config.model.precision,
        world_size=world_size,
        parameters=count.total,
        trainable=count.trainable,
        micro_batch=micro_batch,
        accumulation=config.schedule.global_batch // (micro_batch * world_size),
        global_batch=config.schedule.global_batch,
        sequence_length=config.data.sequence_length,
        steps=config.schedule.steps,
        sequences=sequences,
        tokens=tokens,
        flops_per_token=flops_per_token(model_config(config.model), count, config.data.sequence_length),
        memory=memory.parts,
        memory_needed=memory.total,
        memory_available=available,
        host_memory_needed=memory.host,
        host_memory_per_node=memory.host * per_node,
        fits=None if available is None else memory.total <= USABLE * available,
        **_checkpoints(config, state_bytes(config, count), _saving(config, folder, rate)),
        tokens_per_second=rate,
        seconds=(tokens - done) / rate if rate else None,
        problem=problem,
        warnings=config_warnings(config, world_size),
    )


def _checkpoints(config: RunConfig, size: int, measured: tuple[float | None, float | None]) -> dict[str, Any]:
    """The plan's facts about checkpoints of ``size`` bytes."""
    kept = checkpoints_kept(config)
    return {
        "saves": _saves(config.checkpoint),
        "save_interval": measured[0],
        "lost_share": measured[1],
        "checkpoint_bytes": size,
        "checkpoints_kept": kept,
        "disk_needed": size * (kept + 1),
        "disk_free": shutil.disk_usage(_existing(Path(config.run.dir))).free,
    }


def checkpoints_kept(config: RunConfig) -> int:
    """How many checkpoints retention leaves at the end of a run, at most.

    Assumes that none is kept by two rules at once and, where saves do not go by steps alone, that every step
    which ``keep_every`` names is saved.
    """
    settings, steps = config.checkpoint, config.schedule.steps
    kept = settings.keep_last
    if settings.keep_every:
        by_steps = settings.every != "auto" and settings.every > 0 and settings.every_minutes is None
        kept += steps // (
            math.lcm(int(settings.every), settings.keep_every) if by_steps else settings.keep_every
        )
    if config.evaluation.every:
        kept += min(settings.keep_best, steps // config.evaluation.every)
    return kept


def _available(config: RunConfig, per_node: int) -> int | None:
    """Bytes that one process may use; None where its device is elsewhere and the profile does not say."""
    from train.memory import device_memory

    cluster = config.cluster
    if cluster.launcher == "slurm" and cluster.device != "cpu" and cluster.memory_gb is None:
        return None
    return device_memory(config, per_node)


def _micro_batch(config: RunConfig, world_size: int, available: int | None) -> tuple[int, str | None]:
    """The micro-batch, and why it does not fit where it does not."""
    from train.memory import USABLE, estimate
    from train.micro_batch import choose_micro_batch, too_large

    if available is None:
        given = config.parallelism.micro_batch
        return (1 if given == "auto" else given), None
    try:
        micro_batch = choose_micro_batch(config, world_size, available)
    except UmbelError as error:
        return 1, str(error)
    memory: Memory = estimate(config, world_size, micro_batch)
    if memory.total <= USABLE * available:
        return micro_batch, None
    if micro_batch == 1:
        return micro_batch, str(too_large(config, world_size, available))
    return (
        micro_batch,
        f"parallelism.micro_batch={micro_batch} does not fit; auto takes the largest that does",
    )


def _rate(folder: RunFolder, world_size: int) -> tuple[float | None, int]:
    """Median tokens/s of the run's newest steps on as many processes, and the tokens it has seen."""
    lines = read_metrics(folder) if folder.metrics.is_file() else []
    rates = [line["tokens_per_second"] for line in lines if line.get("world_size") == world_size]
    known = [rate for rate in rates[-_RECENT:] if rate]
    return (statistics.median(known) if known else None), int(lines[-1]["tokens"]) if lines else 0


def _saving(config: RunConfig, folder: RunFolder, rate: float | None) -> tuple[float | None, float | None]:
    """Seconds from save to save, and the share of time lost, of a run whose steps and saves are measured."""
    if not rate or not folder.events.is_file():
        return None, None
    events = [event for event in read_events(folder) if event["event"] == "checkpoint" and "blocked" in event]
    saves = [(event["blocked"], event["seconds"]) for event in events]
    step = config.schedule.global_batch * config.data.sequence_length / rate
    return expected(config.checkpoint, config.cluster, saves, step) or (None, None)


def _saves(config: Checkpoint) -> str:
    """When the run saves, in words."""
    if config.every == "auto":
        rules = [f"as often as pays, at least every {config.max_minutes:g} minutes"]
    else:
        rules = [f"every {config.every} steps"] if config.every else []
    if config.every_minutes is not None:
        rules.append(f"every {config.every_minutes:g} minutes")
    return " and ".join(rules) or "at its end"


def _model_name(config: RunConfig) -> str:
    return config.model.pretrained or str(config.model.arch)


def _parallelism_name(config: RunConfig) -> str:
    device = config.cluster.device
    if device == "auto":
        elsewhere = config.cluster.memory_gb or config.cluster.launcher == "slurm"
        device = "cuda" if elsewhere or cuda_devices() else "cpu"
    return f"{config.parallelism.name} on {device}"


def _existing(path: Path) -> Path:
    """The path itself or its nearest ancestor that is there."""
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)
