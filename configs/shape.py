"""The rules of a model's shape that its numbers alone decide: heads fill the width, sequences fit."""

from __future__ import annotations

from typing import Any

from base.errors import UmbelError
from configs.schema import Model

_WHOLE_HEADS = ("llama", "olmo2")  # architectures whose heads must fill the hidden size


def check_shape(model: Model, sequence_length: int) -> None:
    """Check the keys that ``model.config`` holds; what it leaves to the architecture is checked in training.

    Raises:
        UmbelError: no whole number, heads that do not fill the width, a sequence beyond the positions.
    """
    hidden = _size(model.config, "hidden_size", "n_embd")
    heads = _size(model.config, "num_attention_heads", "n_head")
    head_dim = _size(model.config, "head_dim")
    if hidden and heads and not (head_dim and model.arch not in _WHOLE_HEADS):
        check_heads(hidden, heads, head_dim)
    longest = _size(model.config, "max_position_embeddings", "n_positions")
    if longest:
        check_length(sequence_length, longest)


def check_heads(hidden: int, heads: int, head_dim: int | None = None) -> None:
    """Refuse a width that is not heads × head_dim; None stands for whatever divides it."""
    if hidden % heads:
        nearest = (hidden // heads * heads, (hidden // heads + 1) * heads)
        raise UmbelError(
            f"hidden size {hidden} is not heads × head_dim: {heads} heads do not divide it",
            where="model.config",
            fix=f"nearest that fit: {' or '.join(str(size) for size in nearest if size)}",
        )
    if head_dim and heads * head_dim != hidden:
        raise UmbelError(
            f"{heads} heads × head_dim {head_dim} = {heads * head_dim}, but hidden size is {hidden}",
            where="model.config.head_dim",
            fix=f"set it to {hidden // heads}, or leave it out",
        )


def check_length(sequence_length: int, longest: int) -> None:
    """Refuse sequences longer than the model has positions for."""
    if sequence_length > longest:
        raise UmbelError(
            f"{sequence_length} is beyond the model's {longest} positions",
            where="data.sequence_length",
            fix=f"set it to at most {longest}",
        )


def _size(config: dict[str, Any], *names: str) -> int | None:
    """The first of these keys that the model's config holds, which must be a whole number."""
    name = next((name for name in names if config.get(name) is not None), None)
    if name is None:
        return None
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UmbelError(f"must be a whole number above 0, not {value!r}", where=f"model.config.{name}")
    return value
