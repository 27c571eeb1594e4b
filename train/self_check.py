"""Is what was just saved what is live? Read back, and compared to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from base.errors import UmbelError
from checkpoint.format import BUFFER, tensor_key
from checkpoint.reader import StateReader
from data.streaming.lanes import Cursors
from train.cursors import NAME as CURSORS
from train.engine import Engine
from train.facts import optimizer_facts
from train.parameters import parameter_shape
from train.portable import SAFETENSORS, host_bytes, stored, stored_shapes, stores_frozen
from train.state import MASTER, Slice, persistent_buffers

CHUNK = 1 << 24
"""Elements that are compared at a time."""

Bytes = npt.NDArray[np.uint8]


def compare(engine: Engine, checkpoint: Path, cursors: Cursors | None) -> str | None:
    """The first difference between a checkpoint and the live state it was saved from, in one line; or None.

    Compared is all that this process holds: master weights and moments, frozen weights unless a pretrained
    base gives them, buffers, step counters, hyperparameters, tied weights, the loss scaler. And the weights
    that the model computes with, where they are whole here, with the masters.

    Args:
        cursors: as they were saved: the sum over all processes.
    """
    try:
        with StateReader(checkpoint) as reader:
            return next(_differences(engine, reader, cursors), None)
    except UmbelError as error:
        return str(error)


def _differences(engine: Engine, reader: StateReader, cursors: Cursors | None) -> Iterator[str]:
    with_frozen = stores_frozen(engine.config.model)
    yield from _ties(engine.model)
    facts = {"parameters": stored_shapes(engine.model, with_frozen), **optimizer_facts(engine)}
    for key, value in json.loads(json.dumps(facts)).items():
        yield from _unlike(key, reader.manifest[key], value)
    yield from _counters(engine, reader.manifest["groups"])
    for piece in stored(engine.state.held(), with_frozen):
        for kind, view in piece.views.items():
            yield from _tensor(reader, piece.parameter, kind, view, piece.start)
    yield from _working_weights(engine)
    yield from _beside(engine.model, reader, cursors)


def _ties(model: torch.nn.Module) -> Iterator[str]:
    """Weights that the architecture ties, and that are two tensors by now."""
    for module in model.modules():
        ties = getattr(module, "all_tied_weights_keys", None) if isinstance(module, PreTrainedModel) else None
        # By name over all modules: under an adapter some parameters have moved.
        parameters = dict(module.named_parameters(remove_duplicate=False)) if ties else {}
        for name, source in (ties or {}).items():
            if name in parameters and source in parameters and parameters[name] is not parameters[source]:
                yield f"{name} is no longer tied to {source}"


def _unlike(where: str, saved: Any, live: Any) -> Iterator[str]:
    """Where two JSON values differ."""
    if isinstance(saved, dict) and isinstance(live, dict):
        for key in saved | live:
            yield from _unlike(f"{where}.{key}", saved.get(key), live.get(key))
    elif isinstance(saved, list) and isinstance(live, list) and len(saved) == len(live):
        for index, (one, other) in enumerate(zip(saved, live, strict=True)):
            yield from _unlike(f"{where}[{index}]", one, other)
    elif saved != live:
        yield f"{where} is {saved!s:.80} in the manifest, {live!s:.80} in memory"


def _counters(engine: Engine, groups: list[dict[str, Any]]) -> Iterator[str]:
    """Step counters of single tensors: `optimizer_facts` has one of each group."""
    saved = {name: group["step"] for group in groups for name in group["names"]}
    names = {id(parameter): name for name, parameter in engine.model.named_parameters()}
    for tensor, state in engine.optimizer.state.items():
        # ZeRO steps flat partitions, which have no name.
        name = names.get(id(tensor))
        right = {saved[name]} if name else set(saved.values())
        if "step" in state and int(state["step"]) not in right:
            told, label = ", ".join(map(str, right)), name or "a partition"
            yield f"Adam's step of {label} is {told} in the manifest, {int(state['step'])} in memory"


def _tensor(reader: StateReader, name: str, kind: str, live: torch.Tensor, start: int = 0) -> Iterator[str]:
    """A stored tensor and live elements of it, flattened, from ``start`` on."""
    key = tensor_key(name, kind)
    if reader.dtype(name, kind) != SAFETENSORS[live.dtype]:
        yield f"{key} is {reader.dtype(name, kind)} on the disk, {SAFETENSORS[live.dtype]} in memory"
        return
    yield from _elements(
        key, live, start, lambda first, stop: reader.read(name, kind, start + first, start + stop)
    )


def _working_weights(engine: Engine) -> Iterator[str]:
    """What the model computes with, and the masters it is rounded from."""
    parameters = dict(engine.model.named_parameters())
    for piece in engine.state.held():
        parameter = parameters[piece.parameter].detach()
        # What ZeRO-3 has partitioned is empty here.
        if (
            MASTER in piece.views
            and parameter.numel() == parameter_shape(parameters[piece.parameter]).numel()
        ):
            yield from _rounded(piece, parameter.reshape(-1))


def _rounded(piece: Slice, weights: torch.Tensor) -> Iterator[str]:
    master = piece.views[MASTER]
    own = weights[piece.start : piece.start + master.numel()]
    if own.data_ptr() != master.data_ptr():
        label = f"{piece.parameter}, as the model computes with it,"
        yield from _elements(
            label, own, piece.start, lambda first, stop: _bytes(master[first:stop].to(own.dtype))
        )


def _beside(model: torch.nn.Module, reader: StateReader, cursors: Cursors | None) -> Iterator[str]:
    """Buffers, and the lanes' cursors."""
    buffers = dict(persistent_buffers(model))
    if cursors is not None:
        buffers[CURSORS] = torch.from_numpy(cursors)
    names = reader.names(BUFFER)
    yield from _unlike("the list of buffers", names, sorted(buffers))
    for name, buffer in buffers.items():
        yield from _unlike(f"the shape of {name}", list(reader.shape(name)), list(buffer.shape))
        yield from _tensor(reader, name, BUFFER, buffer.reshape(-1))


def _elements(
    label: str, live: torch.Tensor, start: int, other: Callable[[int, int], Bytes]
) -> Iterator[str]:
    """How many elements differ in a bit; ``other`` gives the bytes that those [first, stop) should have."""
    count, where = 0, 0
    for first in range(0, live.numel(), CHUNK):
        stop = min(first + CHUNK, live.numel())
        found, wanted = _bytes(live[first:stop]), other(first, stop)
        if np.array_equal(found, wanted):
            continue
        unequal = (found != wanted).reshape(stop - first, -1).any(axis=1)
        where = where if count else start + first + int(unequal.argmax())
        count += int(unequal.sum())
    if count:
        yield f"{label} differs in {count} of {live.numel()} elements, first at {where}"


def _bytes(tensor: torch.Tensor) -> Bytes:
    return np.frombuffer(host_bytes(tensor), np.uint8)
