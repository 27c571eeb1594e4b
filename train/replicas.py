"""Do all processes that hold the same numbers hold the same bits?

Memory and links fail silently at scale, and a replica that has drifted spoils every gradient it is averaged
into (Llama 3, arXiv:2407.21783, table 5, counts silent data corruption). A checksum of each tensor is
computed where it lies, and only checksums travel.

Compared is what every process holds whole: the model's weights under DistributedDataParallel and ZeRO 0
to 2, and under ZeRO-3 the small ones that stay gathered; the moments under DistributedDataParallel and
ZeRO 0. What ZeRO partitions has no second copy to be compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from checkpoint.format import tensor_key
from train.distributed import World
from train.engine import Engine
from train.parameters import parameter_shape
from train.state import EXP_AVG, EXP_AVG_SQ, MASTER

CHUNK, CPU_CHUNK = 1 << 22, 1 << 17
"""Elements at a time: a device wants few kernels, a CPU what its cache holds. 8 bytes of memory for each."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def disagreement(engine: Engine, world: World) -> str | None:
    """Which tensor is not the same on all processes, and on which it is another; None if all agree.

    Collective; every process is told the same.
    """
    labels, tensors = zip(*_candidates(engine), strict=True)
    holders = world.sum([int(tensor is not None) for tensor in tensors])
    shared = [index for index, count in enumerate(holders) if count == world.size > 1]
    table = np.zeros((world.size, len(shared)), np.int64)
    table[world.rank] = digests([tensors[index] for index in shared]).numpy()
    table = world.sum_array(table)
    differing = (table != table[0]).any(axis=0).nonzero()[0].tolist()
    if not differing:
        return None
    first = differing[0]
    others = f" ({len(differing)} of {len(shared)} tensors differ)" if len(differing) > 1 else ""
    return f"{labels[shared[first]]} {_odd_ones_out(table[:, first].tolist())}{others}"


def digests(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A checksum of the bits of each tensor: int64 [len(tensors)], on the host.

    Of elements read as integers b_0, b_1, ... it is the sum of (2 i + 1) b_i, modulo 2^64. With up to 4 bytes
    an element, a change of one is always seen: the difference is below 2^32, and an odd factor adds no
    power of 2 to it. So are two that changed places, if they are less than 2^31 elements apart.
    """
    made = [_digest(tensor) for tensor in tensors]  # all queued before the first is waited for
    return torch.tensor([int(digest) for digest in made], dtype=torch.int64)


def _digest(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.detach().reshape(-1).view(_BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    chunk = CPU_CHUNK if tensor.device.type == "cpu" else CHUNK
    odd = 2 * torch.arange(min(chunk, bits.numel()), device=tensor.device) + 1
    for first in range(0, bits.numel(), chunk):
        part = bits[first : first + chunk].to(torch.int64, copy=True)
        total += 2 * first * part.sum()
        total += part.mul_(odd[: part.numel()]).sum()
    return total


def _candidates(engine: Engine) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Every tensor that may be replicated, in the same order everywhere; None where it is not whole here."""
    held = {
        (piece.parameter, kind): view for piece in engine.state.held() for kind, view in piece.views.items()
    }
    for name, parameter in engine.model.named_parameters():
        size = parameter_shape(parameter).numel()
        yield name, parameter if parameter.numel() == size else None
        for kind in (MASTER, EXP_AVG, EXP_AVG_SQ):
            view = held.get((name, kind))
            # Without master copies the model's weights are the masters.
            new = view is not None and view.numel() == size and view.data_ptr() != parameter.data_ptr()
            yield tensor_key(name, kind), view if new else None


def _odd_ones_out(values: list[int]) -> str:
    """Which ranks hold another value than most; of two, the first is taken for right."""
    ((common, count),) = Counter(values).most_common(1)
    odd = [str(rank) for rank, value in enumerate(values) if value != common]
    others = f"rank {values.index(common)}" if count == 1 else f"the other {count}"
    return f"on rank {', '.join(odd)} is not what it is on {others}"
