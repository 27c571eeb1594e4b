"""Between live tensors and the bytes of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from checkpoint.format import BUFFER
from checkpoint.reader import StateReader
from checkpoint.writer import Fragment
from data.streaming.lanes import Cursors
from train.cursors import NAME as CURSORS
from train.engine import Engine
from train.parameters import parameter_shape
from train.state import persistent_buffers

_SAFETENSORS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def fragments(engine: Engine, cursors: Cursors | None = None) -> Iterator[Fragment]:
    """What this process writes: the slices it owns, and on rank 0 the persistent buffers and the cursors."""
    for piece in engine.state.owned():
        for kind, view in piece.views.items():
            yield Fragment(piece.parameter, kind, piece.start, host_bytes(view), "F32", tuple(view.shape))
    if engine.world.is_first:
        for name, buffer in persistent_buffers(engine.model):
            dtype = _SAFETENSORS[buffer.dtype]
            yield Fragment(name, BUFFER, 0, host_bytes(buffer), dtype, tuple(buffer.shape))
        if cursors is not None:
            yield Fragment(CURSORS, BUFFER, 0, memoryview(cursors.tobytes()), "I64", cursors.shape)


def trainable_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """Full shape of every trained parameter, also where a process holds only a part of it."""
    return {
        name: list(parameter_shape(parameter))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def read_into(reader: StateReader, name: str, kind: str, start: int, target: torch.Tensor) -> None:
    """Fill a tensor on any device with stored elements, through one host buffer of its size."""
    raw = reader.read(name, kind, start, start + target.numel())
    target.copy_(torch.from_numpy(raw).view(target.dtype).view(target.shape))


def read_buffers(reader: StateReader, model: torch.nn.Module) -> None:
    """Fill the model's persistent buffers."""
    for name, buffer in persistent_buffers(model):
        read_into(reader, name, BUFFER, 0, buffer)


def host_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's raw bytes in host memory."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
