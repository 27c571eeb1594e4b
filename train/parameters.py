"""A model's parameters by kind: how many there are, and which of them decay."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from configs.schema import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters by kind; tied weights count once.

    ``matmul`` leaves out tables that are only looked up (input embeddings that are not also the output head,
    positions): the N of the 6 N rule of FLOPs.
    """

    total: int
    trainable: int
    embedding: int
    matmul: int


def parameter_count(model: nn.Module) -> ParameterCount:
    """Count the parameters of a model on any device, meta and ZeRO-3 partitions included."""
    embeddings = _embedding_ids(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    multiplied = {id(head.weight)} if head is not None else set()
    total = trainable = embedding = lookup = 0
    for parameter in model.parameters():
        size = parameter_shape(parameter).numel()
        total += size
        trainable += size if parameter.requires_grad else 0
        if id(parameter) in embeddings:
            embedding += size
            lookup += 0 if id(parameter) in multiplied else size
    return ParameterCount(total=total, trainable=trainable, embedding=embedding, matmul=total - lookup)


def parameter_shape(parameter: torch.Tensor) -> torch.Size:
    """A parameter's full shape, also where ZeRO-3 keeps only a partition of it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def parameter_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Trainable parameters in at most two groups, with and without weight decay.

    Each group has ``params``, ``names`` and ``weight_decay``. Norms and biases decay only with
    ``decay_norms``, embeddings (a tied output head among them) only with ``decay_embeddings``.
    """
    embeddings, norms = _embedding_ids(model), _norm_ids(model)
    decayed: dict[str, Any] = {"params": [], "names": [], "weight_decay": optimizer.weight_decay}
    spared: dict[str, Any] = {"params": [], "names": [], "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings:
            decays = optimizer.decay_embeddings
        else:
            small = id(parameter) in norms or name.endswith("bias") or len(parameter_shape(parameter)) < 2
            decays = optimizer.decay_norms or not small
        group = decayed if decays else spared
        group["params"].append(parameter)
        group["names"].append(name)
    return [group for group in (decayed, spared) if group["params"]]


def _embedding_ids(model: nn.Module) -> set[int]:
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def _norm_ids(model: nn.Module) -> set[int]:
    # Every architecture has norm classes of its own; the name is what they share.
    norms = (module for module in model.modules() if "norm" in type(module).__name__.lower())
    return {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
