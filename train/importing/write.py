"""From what was found to a portable checkpoint, one tensor in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from base.errors import UmbelError
from checkpoint.format import BUFFER
from checkpoint.writer import Fragment
from configs.schema import RunConfig
from train.importing.source import MOMENTS, Source
from train.importing.stored import Parts
from train.model import build_model
from train.portable import SAFETENSORS, host_bytes, stores_frozen
from train.state import FROZEN, MASTER, persistent_buffers


def fragments(source: Source, model: nn.Module, with_frozen: bool) -> Iterator[Fragment]:
    """Everything the checkpoint holds, in fp32 what trains; nothing is read before it is written."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield _flat(name, MASTER, source.weights[name], torch.float32)
            for kind in MOMENTS:
                yield _moment(name, kind, source)
        elif with_frozen:
            yield _flat(name, FROZEN, source.weights[name], None)
    for name, buffer in persistent_buffers(model):
        parts = source.buffers[name]
        data = partial(_bytes, parts, buffer.dtype)
        yield Fragment(name, BUFFER, 0, data, SAFETENSORS[buffer.dtype], parts.shape)


def check_base(source: Source, model: nn.Module, config: RunConfig, where: str) -> None:
    """Refuse adapters that were trained on another base than the run's, whose frozen weights are not stored.

    Raises:
        UmbelError: names the first frozen weight that differs.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if stores_frozen(config.model) or not frozen & set(source.weights):
        return
    for name, parameter in build_model(config.model, config.run.seed).named_parameters():
        if name in frozen and name in source.weights:
            theirs = source.weights[name].read()
            if not torch.equal(theirs, parameter.detach().view(-1).to(theirs.dtype)):
                raise UmbelError(
                    f"was trained on another base: {name} differs from that of {config.model.pretrained}",
                    where=where,
                    fix="set model.pretrained and model.revision to its base",
                )


def _flat(name: str, kind: str, parts: Parts, dtype: torch.dtype | None) -> Fragment:
    stored = parts.dtype if dtype is None else SAFETENSORS[dtype]
    return Fragment(name, kind, 0, partial(_bytes, parts, dtype), stored, (math.prod(parts.shape),))


def _moment(name: str, kind: str, source: Source) -> Fragment:
    found, shape = source.moments.get(kind, {}).get(name), source.weights[name].shape
    if found is not None:
        return _flat(name, kind, Parts(shape, found.pieces), torch.float32)
    numel = math.prod(shape)
    return Fragment(name, kind, 0, partial(bytes, 4 * numel), "F32", (numel,))


def _bytes(parts: Parts, dtype: torch.dtype | None) -> memoryview:
    values = parts.read()
    return host_bytes(values if dtype is None else values.to(dtype))
