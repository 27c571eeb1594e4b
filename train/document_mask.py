"""Whether an architecture can keep the documents of a row apart: a small one of it is tried.

Not a list of names: a model that takes position ids may still ignore them (ALiBi, state-space layers, learned
positions counted by the model), and would then silently learn from other documents.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from base.errors import UmbelError
from configs.schema import RunConfig
from train.architecture import attention_implementation, decoder_config, last_line
from train.initialize import preserved_random_state
from train.masking import logits_of

VOCABULARY, WIDTH = 64, 64
"""Rows of the small model's embedding, and the width of its feed-forward layers."""

FIRST, SECOND = 8, 9
"""Tokens of the two documents that are tried."""

TOLERANCE = 1e-3
"""Of the logits' spread. Rounding makes 2e-5 at most; what is seen of another document, or from another
position, 0.1 at least (measured over the causal models of Transformers 5.23)."""


def check_document_mask(config: RunConfig) -> None:
    """Nothing, where ``data.intra_document_mask`` is off; else a second's trial on the CPU.

    Raises:
        UmbelError: the model would see other documents of its row all the same, or cannot be tried.
    """
    if not config.data.intra_document_mask:
        return
    shape = decoder_config(config.model)
    attention = attention_implementation(config.model, shape)
    # Flex attention, which is compiled, applies the mask function that SDPA's mask is made of.
    attention = "sdpa" if attention == "flex_attention" else attention
    try:
        apart = keeps_apart(shape, attention)
        what = f"{shape.model_type} does not keep the documents of a row apart"
    except Exception as error:
        apart = False
        what = f"a small {shape.model_type} to try it on cannot be made ({last_line(error)})"
    if not apart:
        raise UmbelError(
            what,
            where="data.intra_document_mask",
            fix="set it to false, or choose another architecture, for example llama, gpt2, olmo2",
        )


@torch.no_grad()
def keeps_apart(shape: PreTrainedConfig, attention: str) -> bool:
    """Whether a document's logits hang neither on the document before it nor on where it stands in its row.

    Args:
        shape: of a text decoder of any size; a small one of its kind is tried, in fp32.
        attention: an attention implementation that runs on the CPU.
    """
    with preserved_random_state():
        torch.manual_seed(0)
        model = small_model(shape, attention)
        ids = torch.randint(VOCABULARY, (2, FIRST + SECOND))
    ids[1, FIRST:] = ids[0, FIRST:]
    positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)]).expand(2, -1)
    one, other = logits_of(model, ids, positions)[:, FIRST:]
    alone = logits_of(model, ids[:1, FIRST:], positions[:1, FIRST:])[0]
    furthest = max(float((one - seen).abs().max()) for seen in (other, alone))
    return furthest <= TOLERANCE * float(alone.std())


def small_model(shape: PreTrainedConfig, attention: str) -> PreTrainedModel:
    """A model of the kind of ``shape``, with few random weights, in eval mode."""
    small = _small_shape(shape)
    model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # Wider than a model starts: attention must weigh, or its absence could not be told.
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model.eval()


def _small_shape(shape: PreTrainedConfig) -> PreTrainedConfig:
    """The same kind of model with few narrow layers: its first ones, until each kind of layer is there."""
    values = shape.to_dict()
    heads = getattr(shape, "num_attention_heads", None) or 1
    few = min(2, heads)
    grouped = getattr(shape, "num_key_value_heads", heads) != heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    kinds = getattr(shape, "layer_types", None) or []
    layers = max([1, *map(kinds.index, kinds)]) + 1
    narrowed: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers,
        "num_attention_heads": few,
        "num_key_value_heads": 1 if grouped else few,
        "hidden_size": few * width,
        "intermediate_size": WIDTH,
        "moe_intermediate_size": WIDTH,
    }
    named = {shape.attribute_map.get(key, key): value for key, value in narrowed.items()}
    for key, value in values.items():
        if isinstance(value, list) and len(value) == shape.num_hidden_layers:
            named[key] = value[:layers]  # one entry a layer
        elif key.endswith("_token_id") and isinstance(value, int):
            named[key] = min(value, VOCABULARY - 1)
    kept = {key: value for key, value in values.items() if key not in ("model_type", "transformers_version")}
    return type(shape)(**kept | {key: value for key, value in named.items() if values.get(key) is not None})
