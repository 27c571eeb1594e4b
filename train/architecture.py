"""From `model.*` keys to a Transformers config, refusing what Transformers would silently swallow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import CONFIG_NAME

from base.errors import UmbelError, did_you_mean
from configs.schema import Model, RunConfig
from configs.shape import check_heads, check_length
from data.tokens.pretrained import hub_folder, local_folder

# Older names that Transformers still turns into `rope_parameters`.
_ROPE_KEYS = ("rope_theta", "rope_scaling", "partial_rotary_factor")


def model_config(model: Model) -> PreTrainedConfig:
    """The Transformers config of a run's model; reads the network only for ``model.pretrained=<hub name>``.

    Raises:
        UmbelError: an unknown architecture or config key (with the nearest known one), a value of another
            type, a pretrained model that is not there or needs code of its own.
    """
    return _pretrained_config(model) if model.pretrained else _shape_config(model)


def decoder_config(model: Model) -> PreTrainedConfig:
    """The part of `model_config` that describes the text decoder: all of it, but for multi-modal models."""
    return model_config(model).get_text_config(decoder=True)


def vocab_size(model: Model) -> int:
    """Rows of the token embedding; a tokenizer must not have more."""
    return int(decoder_config(model).vocab_size)


def check_shape(config: RunConfig) -> None:
    """The rules across fields that need the Transformers config, pretrained ones included.

    Raises:
        UmbelError: heads that do not divide the width, a sequence or a vocabulary beyond the model's.
    """
    shape = decoder_config(config.model)
    _check_attention(shape)
    longest = getattr(shape, "max_position_embeddings", None)
    if longest:
        check_length(config.data.sequence_length, longest)
    tokenizer = config.data.tokenizer
    trained_here = config.model.pretrained is None and tokenizer.path is None
    if trained_here and tokenizer.vocab_size > shape.vocab_size:
        raise UmbelError(
            f"{tokenizer.vocab_size} tokens do not fit the model's {shape.vocab_size}",
            where="data.tokenizer.vocab_size",
            fix=f"set it to at most {shape.vocab_size}, or raise model.config.vocab_size",
        )


def attention_implementation(model: Model, config: PreTrainedConfig) -> str:
    """``sdpa`` where the architecture supports it, else ``eager``; or what ``model.attention`` asks for.

    With ``data.intra_document_mask`` SDPA is handed a mask, and CUDA's flash kernels take none. Where rows
    are long ``flex_attention`` skips what is masked instead; it is compiled, and trains on CUDA only.

    Raises:
        UmbelError: the architecture does not support what is asked for.
    """
    known = model_class(config)
    supported = ["eager"]
    supported += ["sdpa"] if known._supports_sdpa else []
    supported += ["flex_attention"] if known._supports_flex_attn else []
    if model.attention == "auto":
        return "sdpa" if "sdpa" in supported else "eager"
    if model.attention not in supported:
        raise UmbelError(
            f"{config.model_type} does not support {model.attention}",
            where="model.attention",
            fix=f"it supports: {', '.join(supported)}",
        )
    return model.attention


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The causal language model that Transformers has for a config.

    Raises:
        UmbelError: it has none (an encoder, for example).
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UmbelError(f"'{config.model_type}' is no causal language model", where="model.pretrained")
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def pretrained_source(model: Model) -> dict[str, Any]:
    """The arguments that tell ``from_pretrained`` where to read; a local folder never touches the network.

    Of a hub model ``revision`` is the commit, so that all its files come from one.

    Raises:
        UmbelError: a folder that is not there or whose weights are a pickle, a hub model out of reach.
    """
    name = str(model.pretrained)
    if folder := local_folder(name):
        _check_safetensors(folder)
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    commit = hub_folder(name, model.revision, (CONFIG_NAME,)).name
    return {"pretrained_model_name_or_path": name, "revision": commit}


def not_loaded(model: Model, error: Exception) -> UmbelError:
    """What ``from_pretrained`` said, in one line."""
    return UmbelError(
        str(error).strip().splitlines()[0].rstrip("."),
        where=f"model.pretrained={model.pretrained}",
        fix="check the name, the revision, the network and HF_TOKEN",
    )


def last_line(error: Exception) -> str:
    """The gist of a Transformers error, whose first lines say where and whose last says what."""
    line = (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".")
    return line.removeprefix("TypeError: ").removeprefix("ValueError: ")


def _check_attention(shape: PreTrainedConfig) -> None:
    heads, hidden = getattr(shape, "num_attention_heads", None), getattr(shape, "hidden_size", None)
    if heads and hidden and not getattr(shape, "head_dim", None):
        check_heads(hidden, heads)
    groups = getattr(shape, "num_key_value_heads", None)
    if heads and groups and heads % groups:
        divisors = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
        raise UmbelError(
            f"{groups} does not divide {heads} heads",
            where="model.config.num_key_value_heads",
            fix=f"these do: {divisors}",
        )


def _shape_config(model: Model) -> PreTrainedConfig:
    arch = str(model.arch)
    if arch not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = did_you_mean(arch, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        fix = near if near.startswith("did") else "for example bloom, gpt2, llama, olmo2"
        raise UmbelError(f"'{arch}' is no causal language model of Transformers", where="model.arch", fix=fix)
    known = type(AutoConfig.for_model(arch))
    _check_keys(known, model.config)
    try:
        return AutoConfig.for_model(arch, **_tokens_outside(known, model.config), **model.config)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UmbelError(last_line(error), where="model.config") from error


def _check_keys(known: type[PreTrainedConfig], config: dict[str, Any]) -> None:
    """Transformers configs keep any key they are given; a misspelt one would silently do nothing."""
    keys = {field.name for field in dataclasses.fields(known)} | set(known.attribute_map)
    if "rope_parameters" in keys:
        keys |= set(_ROPE_KEYS)
    for key in config:
        if key not in keys:
            raise UmbelError(
                f"{known.model_type} has no such key",
                where=f"model.config.{key}",
                fix=did_you_mean(key, keys),
            )


def _tokens_outside(known: type[PreTrainedConfig], config: dict[str, Any]) -> dict[str, None]:
    """Unset default special tokens (GPT-2's 50256) that lie outside a smaller vocabulary."""
    size = config.get("vocab_size")
    return {
        field.name: None
        for field in dataclasses.fields(known)
        if field.name.endswith("_token_id") and field.name not in config
        if isinstance(size, int) and isinstance(field.default, int) and field.default >= size
    }


def _pretrained_config(model: Model) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(trust_remote_code=False, **pretrained_source(model))
    except (OSError, ValueError, StrictDataclassError) as error:
        raise not_loaded(model, error) from error


def _check_safetensors(folder: Path) -> None:
    if any(folder.glob("*.safetensors")) or not any(folder.glob("*.bin")):
        return
    convert = f"A.from_pretrained('{folder}').save_pretrained('{folder}-safe')"
    raise UmbelError(
        "holds its weights as a pickle, which can run any code when loaded",
        where=str(folder),
        fix=f'if you trust it: python -c "from transformers import AutoModelForCausalLM as A; {convert}"',
    )
