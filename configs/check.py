"""The rules that span several keys. Types and names are checked before, in `configs.typed`."""

from __future__ import annotations

import math
import re
from typing import Any

from base.errors import UmbelError
from base.secrets import holds_secret
from configs.batch import check_batch, sequences_at
from configs.check_cluster import check_cluster, cluster_warnings
from configs.check_data import check_data, late_phases
from configs.plain import flatten, to_dict
from configs.schema import RunConfig
from configs.shape import check_shape

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_AT_LEAST = {
    "run.seed": 0,
    "model.lora.r": 1,
    "data.sequence_length": 2,
    "data.max_bytes": 1,
    "data.shuffle_window": 1,
    "data.workers": 0,
    "data.tokenizer.vocab_size": 257,  # 256 bytes and the end of a document
    "data.tokenizer.train_bytes": 1,
    "parallelism.processes": 1,
    "parallelism.micro_batch": 1,
    "parallelism.accumulation": 1,
    "optimizer.lr": 0,
    "optimizer.eps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_grad_norm": 0,
    "schedule.steps": 1,
    "schedule.warmup_steps": 0,
    "schedule.decay_steps": 0,
    "schedule.global_batch": 1,
    "schedule.batch_ramp.start": 1,
    "schedule.batch_ramp.increment": 1,
    "schedule.batch_ramp.sequences": 1,
    "checkpoint.every": 0,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_every": 1,
    "checkpoint.keep_best": 0,
    "checkpoint.compare_replicas": 0,
    "evaluation.every": 0,
    "evaluation.sequences": 1,
    "samples.every": 0,
    "samples.max_new_tokens": 1,
    "tracker.log_every": 1,
    "cluster.nodes": 1,
    "supervision.restarts": 0,
    "supervision.blame": 1,
}
_ABOVE_ZERO = (
    "data.mixture.temperature",
    "data.mixture.max_epochs",
    "data.cache_gb",
    "checkpoint.every_minutes",
    "checkpoint.max_minutes",
    "cluster.mtbf_hours",
    "supervision.hang_factor",
    "supervision.hang_seconds",
    "supervision.start_minutes",
    "supervision.straggler",
)


def check(config: RunConfig) -> None:
    """Refuse nonsense across fields.

    Raises:
        UmbelError: the first rule that is broken.
    """
    _check_name(config)
    values = flatten(to_dict(config))
    _check_secrets(values)
    _check_bounds(values)
    _check_model(config)
    check_data(config)
    _check_optimizer(config)
    _check_schedule(config)
    _check_parallelism(config)
    check_cluster(config.cluster)


def warnings(config: RunConfig, world_size: int) -> list[str]:
    """What will run, but is probably not meant."""
    notes = []
    if config.parallelism.zero_stage == 3 and world_size == 1 and not config.parallelism.offload_parameters:
        notes.append(
            "parallelism.zero_stage=3 with a single process only costs time: zero_stage=0 does the same"
        )
    if config.parallelism.name == "single" and world_size > 1:
        notes.append(f"parallelism=single with {world_size} processes runs as ddp")
    notes += cluster_warnings(config.cluster)
    return notes + late_phases(config, sequences_at(config.schedule, config.schedule.steps))


def _check_name(config: RunConfig) -> None:
    if not _NAME.fullmatch(config.run.name):
        raise UmbelError(
            f"{config.run.name!r} cannot name a folder", where="run.name", fix="use letters, digits, . _ -"
        )


def _check_secrets(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if holds_secret(str(value)):
            raise UmbelError(
                "holds a secret", where=key, fix="put it into the environment (HF_TOKEN, WANDB_API_KEY)"
            )


def _check_bounds(values: dict[str, Any]) -> None:
    for key, lowest in _AT_LEAST.items():
        value = values.get(key)
        if isinstance(value, int | float) and not lowest <= value < math.inf:
            raise UmbelError(f"must be a number from {lowest} on, not {value}", where=key)
    for share in values["supervision.disk_alerts"]:
        if not 0 < share < 1:
            raise UmbelError(f"must be shares between 0 and 1, not {share}", where="supervision.disk_alerts")
    for key in _ABOVE_ZERO:
        if values[key] is not None and not 0 < values[key] < math.inf:
            raise UmbelError(f"must be a number above 0, not {values[key]}", where=key)


def _check_model(config: RunConfig) -> None:
    model = config.model
    if (model.arch is None) == (model.pretrained is None):
        raise UmbelError(
            "needs exactly one of model.arch and model.pretrained",
            where="model",
            fix="set model.pretrained=…, or model=bloom_560m"
            if model.arch is None
            else "for model.pretrained add model=pretrained, or drop it",
        )
    if model.pretrained and model.config:
        raise UmbelError(
            f"cannot change the shape of pretrained {model.pretrained}", where="model.config", fix="drop it"
        )
    if model.revision and not model.pretrained:
        raise UmbelError("has a meaning only with model.pretrained", where="model.revision")
    check_shape(model, config.data.sequence_length)


def _check_optimizer(config: RunConfig) -> None:
    optimizer = config.optimizer
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise UmbelError("must be two numbers in [0, 1)", where="optimizer.betas")


def _check_schedule(config: RunConfig) -> None:
    schedule = config.schedule
    if schedule.warmup_steps > schedule.steps:
        raise UmbelError(
            f"{schedule.warmup_steps} does not fit into schedule.steps = {schedule.steps}",
            where="schedule.warmup_steps",
            fix=f"set it to at most {schedule.steps}",
        )
    if not 0 <= schedule.min_lr_ratio <= 1:
        raise UmbelError("must be between 0 and 1", where="schedule.min_lr_ratio")
    after_warmup = schedule.steps - schedule.warmup_steps
    if schedule.name == "wsd" and schedule.decay_steps > after_warmup:
        raise UmbelError(
            f"{schedule.decay_steps} does not fit into the {after_warmup} steps after the warm-up",
            where="schedule.decay_steps",
            fix=f"set it to at most {after_warmup}",
        )
    ramp, batch = schedule.batch_ramp, schedule.global_batch
    if ramp is not None and (ramp.start > batch or (batch - ramp.start) % ramp.increment):
        raise UmbelError(
            f"increments of {ramp.increment} from {ramp.start} do not reach global_batch {batch}",
            where="schedule.batch_ramp",
            fix="choose an increment that divides global_batch − start",
        )


def _check_parallelism(config: RunConfig) -> None:
    parallelism = config.parallelism
    if parallelism.zero_stage > 0 and parallelism.engine != "deepspeed":
        raise UmbelError(
            f"zero_stage {parallelism.zero_stage} needs DeepSpeed",
            where="parallelism.engine",
            fix="set it to deepspeed",
        )
    if parallelism.offload_optimizer and parallelism.zero_stage == 0:
        raise UmbelError("needs zero_stage 1, 2 or 3", where="parallelism.offload_optimizer")
    if parallelism.offload_parameters and parallelism.zero_stage != 3:
        raise UmbelError("needs zero_stage 3", where="parallelism.offload_parameters")
    if parallelism.processes is not None:
        check_batch(config, parallelism.processes)
