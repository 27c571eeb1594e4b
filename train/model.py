"""A run's model: built from its shape with seeded weights, or read from pretrained safetensors."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from base.errors import UmbelError
from configs.schema import Model
from train.architecture import (
    attention_implementation,
    check_shape,
    last_line,
    model_config,
    not_loaded,
    pretrained_source,
    vocab_size,
)
from train.initialize import initialize
from train.parameters import ParameterCount, parameter_count, parameter_groups

__all__ = [
    "ParameterCount",
    "build_model",
    "build_skeleton",
    "check_shape",
    "meta_model",
    "model_config",
    "parameter_count",
    "parameter_groups",
    "vocab_size",
]


def build_model(model: Model, seed: int) -> PreTrainedModel:
    """A model in fp32 on the CPU, ready to train: pretrained, or with weights that depend on ``seed`` only.

    With ``model.lora`` it is frozen, wrapped by peft, and only its adapters train.

    Raises:
        UmbelError: as `model_config`; weights that are not safetensors, or that do not fill the model.
    """
    if model.pretrained:
        built = _prepare(_load_pretrained(model, model_config(model)), model)
    else:
        built = build_skeleton(model)
        initialize(built, seed)
    return _with_adapters(built, model, seed)


def build_skeleton(model: Model) -> PreTrainedModel:
    """The model with its weights allocated and tied but not filled: `train.initialize.initialize` fills them.

    Under ``deepspeed.zero.Init()`` every parameter is partitioned as it is made.
    """
    with no_init_weights():
        built = _from_config(model)
    built.tie_weights()
    return _prepare(built, model)


def meta_model(model: Model) -> PreTrainedModel:
    """The model on the meta device, adapters included: shapes and names, no memory."""
    with torch.device("meta"):
        return _with_adapters(_prepare(_from_config(model), model), model, seed=0)


def _with_adapters(built: PreTrainedModel, model: Model, seed: int) -> PreTrainedModel:
    """``built`` itself, or wrapped in the adapters that ``model.lora`` asks for."""
    if model.lora is None:
        return built
    from train.adapters import add_adapters  # peft is slow to import, and few runs need it

    return add_adapters(built, model.lora, seed)


def _from_config(model: Model) -> PreTrainedModel:
    config = model_config(model)
    attention = attention_implementation(model, config)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UmbelError(
            f"no {config.model_type} has this shape ({last_line(error)})", where="model.config"
        ) from error


def _load_pretrained(model: Model, config: PreTrainedConfig) -> PreTrainedModel:
    try:
        # With output_loading_info the return is a pair, which Transformers' annotation does not say.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention_implementation(model, config),
            output_loading_info=True,
            **pretrained_source(model),
        )
    except (OSError, ValueError) as error:
        raise not_loaded(model, error) from error
    built, report = loaded
    unfilled = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if unfilled:
        raise UmbelError(
            f"does not fill {len(unfilled)} of the model's weights, {unfilled[0]} among them",
            where=f"model.pretrained={model.pretrained}",
            fix="give a whole causal language model",
        )
    return built


def _prepare(built: PreTrainedModel, model: Model) -> PreTrainedModel:
    built.config.use_cache = False
    if model.activation_checkpointing:
        try:
            built.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise UmbelError(
                f"{built.config.model_type} does not support it", where="model.activation_checkpointing"
            ) from error
    return built.train()
