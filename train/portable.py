"""Between live tensors and the bytes of a checkpoint.

What is stored: every parameter that trains, and every frozen one that nothing else gives. Frozen weights of a
pretrained base are not: the checkpoint names the base by hash (`train.base_model`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

from base.errors import UmbelError
from checkpoint.format import BUFFER
from checkpoint.reader import StateReader
from checkpoint.writer import Fragment
from configs.schema import Model
from data.streaming.lanes import Cursors
from train.cursors import NAME as CURSORS
from train.engine import Engine
from train.parameters import parameter_shape
from train.state import FROZEN, Slice, persistent_buffers

SAFETENSORS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Dtypes as safetensors spells them."""

TORCH = {name: dtype for dtype, name in SAFETENSORS.items()}
"""And back."""


def stores_frozen(model: Model) -> bool:
    """Whether a run's checkpoints hold its frozen weights: no base gives them."""
    return model.pretrained is None


def stored(slices: Iterable[Slice], with_frozen: bool) -> Iterator[Slice]:
    """Those of ``slices`` that go into a checkpoint."""
    return (piece for piece in slices if with_frozen or FROZEN not in piece.views)


def stored_shapes(model: torch.nn.Module, with_frozen: bool) -> dict[str, list[int]]:
    """Full shape of every stored parameter, also where a process holds only a part of it."""
    return {
        name: list(parameter_shape(parameter))
        for name, parameter in model.named_parameters()
        if with_frozen or parameter.requires_grad
    }


def fragments(engine: Engine, with_frozen: bool) -> Iterator[Fragment]:
    """The slices this process writes, copied to the host one by one as they are written.

    A frozen weight has the dtype it is held in, bf16 or fp32 by engine; its value is the same.
    """
    for piece in stored(engine.state.owned(), with_frozen):
        for kind, view in piece.views.items():
            data, dtype = partial(host_bytes, view), SAFETENSORS[view.dtype]
            yield Fragment(piece.parameter, kind, piece.start, data, dtype, tuple(view.shape))


def small_fragments(engine: Engine, cursors: Cursors | None = None) -> list[Fragment]:
    """What rank 0 writes besides, copied now: the persistent buffers and the lanes' cursors."""
    if not engine.world.is_first:
        return []
    found = [
        Fragment(name, BUFFER, 0, bytes(host_bytes(buffer)), SAFETENSORS[buffer.dtype], tuple(buffer.shape))
        for name, buffer in persistent_buffers(engine.model)
    ]
    if cursors is not None:
        found.append(Fragment(CURSORS, BUFFER, 0, cursors.tobytes(), "I64", cursors.shape))
    return found


def read_state(reader: StateReader, engine: Engine) -> None:
    """Fill every slice this process holds, and the buffers, after `train.facts.check_parameters`.

    What the base gives is not stored, and stays as it is.
    """
    for piece in engine.state.held():
        if piece.parameter in reader.manifest["parameters"]:
            for kind, view in piece.views.items():
                read_into(reader, piece.parameter, kind, piece.start, view)
    read_buffers(reader, engine.model)


def read_into(reader: StateReader, name: str, kind: str, start: int, target: torch.Tensor) -> None:
    """Fill a tensor on any device with stored elements, through one host buffer of its size.

    Raises:
        UmbelError: the target's dtype cannot hold the stored values.
    """
    raw = reader.read(name, kind, start, start + target.numel())
    found = torch.from_numpy(raw).view(TORCH[reader.dtype(name, kind)]).view(target.shape)
    target.copy_(found)
    # Frozen weights are stored as they were held: in bf16, or in fp32 as numbers that bf16 holds too.
    if found.dtype != target.dtype and not target.cpu().to(found.dtype).equal(found):
        kept = str(target.dtype).removeprefix("torch.")
        raise UmbelError(
            f"holds numbers of {name} that {kept} rounds",
            where=str(reader.folder),
            fix="keep model.precision",
        )


def read_buffers(reader: StateReader, model: torch.nn.Module) -> None:
    """Fill the model's persistent buffers."""
    for name, buffer in persistent_buffers(model):
        read_into(reader, name, BUFFER, 0, buffer)


def host_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's raw bytes in host memory: its own where it lies there."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
