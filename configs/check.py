"""The rules that span several keys. Types and names are checked before, in `configs.typed`."""

from __future__ import annotations

import re
from typing import Any

from base.errors import UmbelError
from configs.batch import check_batch
from configs.schema import RunConfig

_SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{20,}|wandb_v1_\w{20,})\b")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check(config: RunConfig) -> None:
    """Refuse nonsense across fields.

    Raises:
        UmbelError: the first rule that is broken.
    """
    _check_name(config)
    _check_secrets(config)
    _check_model(config)
    _check_data(config)
    _check_optimizer(config)
    _check_schedule(config)
    _check_parallelism(config)


def warnings(config: RunConfig, world_size: int) -> list[str]:
    """What will run, but is probably not meant."""
    notes = []
    if config.parallelism.zero_stage == 3 and world_size == 1 and not config.parallelism.offload_parameters:
        notes.append("parallelism.zero_stage=3 with a single process only costs time: zero_stage=0 does the same")
    if config.parallelism.name == "single" and world_size > 1:
        notes.append(f"parallelism=single with {world_size} processes runs as ddp")
    return notes


def _check_name(config: RunConfig) -> None:
    if not _NAME.fullmatch(config.run.name):
        raise UmbelError(
            f"{config.run.name!r} cannot name a folder", where="run.name", fix="use letters, digits, . _ -"
        )


def _check_secrets(config: RunConfig) -> None:
    from configs.compose import flatten, to_dict

    for key, value in flatten(to_dict(config)).items():
        if isinstance(value, str) and _SECRET_VALUE.search(value):
            raise UmbelError("holds a secret", where=key, fix="put it into the environment (HF_TOKEN, WANDB_API_KEY)")


def _check_model(config: RunConfig) -> None:
    model = config.model
    if (model.arch is None) == (model.pretrained is None):
        raise UmbelError(
            "needs exactly one of model.arch and model.pretrained", where="model", fix="for example model=bloom_560m"
        )
    if model.pretrained and model.config:
        raise UmbelError(
            f"cannot change the shape of pretrained {model.pretrained}", where="model.config", fix="drop it"
        )
    if model.revision and not model.pretrained:
        raise UmbelError("has a meaning only with model.pretrained", where="model.revision")
    hidden, heads = _first(model.config, "hidden_size", "n_embd"), _first(
        model.config, "num_attention_heads", "n_head"
    )
    head_dim = model.config.get("head_dim")
    if hidden and heads and not head_dim and hidden % heads:
        raise UmbelError(
            f"hidden size {hidden} is not heads × head_dim: {heads} heads do not divide it",
            where="model.config",
            fix=f"nearest that fit: {hidden // heads * heads} or {(hidden // heads + 1) * heads}",
        )
    if hidden and heads and head_dim and model.arch in ("llama", "olmo2") and heads * head_dim != hidden:
        raise UmbelError(
            f"{heads} heads × head_dim {head_dim} = {heads * head_dim}, but hidden size is {hidden}",
            where="model.config.head_dim",
            fix=f"set it to {hidden // heads}, or leave it out",
        )
    longest = _first(model.config, "max_position_embeddings", "n_positions")
    if longest and config.data.sequence_length > longest:
        raise UmbelError(
            f"{config.data.sequence_length} is beyond the model's {longest} positions",
            where="data.sequence_length",
            fix=f"set it to at most {longest}",
        )


def _check_data(config: RunConfig) -> None:
    data = config.data
    if bool(data.sources) == bool(data.path):
        raise UmbelError(
            "needs either data.sources or data.path", where="data", fix="for example data=python or data.path=my.jsonl"
        )
    if data.sequence_length < 2:
        raise UmbelError("must be at least 2", where="data.sequence_length")
    if not 0 <= data.held_out < 0.5:
        raise UmbelError("must be at least 0 and below 0.5", where="data.held_out")
    weights = {name: source.weight for name, source in data.sources.items()}
    for name, weight in weights.items():
        if not weight >= 0:
            raise UmbelError(f"must not be negative, but is {weight}", where=f"data.sources.{name}.weight")
    if weights and sum(weights.values()) == 0:
        raise UmbelError("weights sum to 0", where="data.sources", fix="give at least one a weight above 0")
    for name, source in data.sources.items():
        if (source.kind == "python") == bool(source.path):
            fix = "drop the path" if source.path else f"set data.sources.{name}.path"
            raise UmbelError("kind=python reads no path, every other kind does", where=f"data.sources.{name}", fix=fix)


def _check_optimizer(config: RunConfig) -> None:
    optimizer = config.optimizer
    for key, value, lowest in (
        ("lr", optimizer.lr, 0.0),
        ("eps", optimizer.eps, 0.0),
        ("weight_decay", optimizer.weight_decay, 0.0),
        ("clip_grad_norm", optimizer.clip_grad_norm, 0.0),
    ):
        if not value >= lowest:
            raise UmbelError(f"must be at least {lowest:g}, but is {value}", where=f"optimizer.{key}")
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise UmbelError("must be two numbers in [0, 1)", where="optimizer.betas")


def _check_schedule(config: RunConfig) -> None:
    schedule = config.schedule
    for key in ("steps", "global_batch"):
        if getattr(schedule, key) < 1:
            raise UmbelError("must be at least 1", where=f"schedule.{key}")
    if not 0 <= schedule.warmup_steps <= schedule.steps:
        raise UmbelError(
            f"{schedule.warmup_steps} does not fit into schedule.steps = {schedule.steps}", where="schedule.warmup_steps"
        )
    if not 0 <= schedule.min_lr_ratio <= 1:
        raise UmbelError("must be between 0 and 1", where="schedule.min_lr_ratio")
    if schedule.name == "wsd" and not 0 <= schedule.decay_steps <= schedule.steps - schedule.warmup_steps:
        raise UmbelError("does not fit after the warm-up", where="schedule.decay_steps")
    ramp = schedule.batch_ramp
    if ramp is not None:
        if min(ramp.start, ramp.increment, ramp.sequences) < 1:
            raise UmbelError("start, increment and sequences must be at least 1", where="schedule.batch_ramp")
        if ramp.start > schedule.global_batch or (schedule.global_batch - ramp.start) % ramp.increment:
            raise UmbelError(
                f"increments of {ramp.increment} from {ramp.start} do not reach global_batch {schedule.global_batch}",
                where="schedule.batch_ramp",
            )


def _check_parallelism(config: RunConfig) -> None:
    parallelism = config.parallelism
    if parallelism.zero_stage > 0 and parallelism.engine != "deepspeed":
        raise UmbelError(
            f"zero_stage {parallelism.zero_stage} needs DeepSpeed", where="parallelism.engine", fix="set it to deepspeed"
        )
    if parallelism.offload_optimizer and parallelism.zero_stage == 0:
        raise UmbelError("needs zero_stage 1, 2 or 3", where="parallelism.offload_optimizer")
    if parallelism.offload_parameters and parallelism.zero_stage != 3:
        raise UmbelError("needs zero_stage 3", where="parallelism.offload_parameters")
    for key in ("processes", "accumulation", "micro_batch"):
        value = getattr(parallelism, key)
        if isinstance(value, int) and value < 1:
            raise UmbelError("must be at least 1", where=f"parallelism.{key}")
    if parallelism.processes is not None:
        check_batch(config, parallelism.processes)


def _first(config: dict[str, Any], *keys: str) -> Any:
    return next((config[key] for key in keys if key in config), None)
