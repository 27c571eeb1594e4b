"""Tensors in files that are not read yet, and ranges of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from checkpoint.format import DTYPE_BYTES, Damaged
from checkpoint.safetensors import read_header
from checkpoint.strict import open_plain
from train.portable import TORCH


class Stored(NamedTuple):
    """One tensor of a safetensors file; its bytes begin at byte ``begin``."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def read(self, start: int, numel: int) -> torch.Tensor:
        """Elements [start, start + numel) of the flattened tensor, in its own dtype.

        Raises:
            Damaged: the file ends before them, or holds what no checkpoint of weights does.
        """
        if self.dtype not in TORCH:
            raise Damaged(f"holds a tensor of dtype {self.dtype}", where=str(self.path))
        width = DTYPE_BYTES[self.dtype]
        data = bytearray(numel * width)
        with open_plain(self.path) as file:
            file.seek(self.begin + start * width)
            if not 0 <= start <= start + numel <= self.numel or file.readinto(data) != len(data):
                raise Damaged(f"has no elements {start} to {start + numel} of a tensor", where=str(self.path))
        return (
            torch.frombuffer(data, dtype=TORCH[self.dtype])
            if data
            else torch.empty(0, dtype=TORCH[self.dtype])
        )


def tensors_of(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file, after checks of its header.

    Raises:
        Damaged: it is not such a file in every respect.
    """
    with open_plain(path) as file:
        entries = read_header(file, str(path)).entries
    return {name: Stored(path, entry.dtype, entry.shape, entry.begin) for name, entry in entries.items()}


class Piece(NamedTuple):
    """Elements [start, start + numel) of a stored tensor."""

    stored: Stored
    start: int
    numel: int

    def read(self) -> torch.Tensor:
        return self.stored.read(self.start, self.numel)


class Parts(NamedTuple):
    """A tensor of a shape, as pieces that follow one another in it."""

    shape: tuple[int, ...]
    pieces: Sequence[Piece]

    @classmethod
    def whole(cls, stored: Stored) -> Parts:
        """A tensor that lies in one file."""
        return cls(stored.shape, [Piece(stored, 0, stored.numel)])

    @property
    def dtype(self) -> str:
        return self.pieces[0].stored.dtype

    @property
    def is_whole(self) -> bool:
        """Whether the pieces lie in what is stored, and are as many elements as the shape."""
        inside = all(0 <= start <= start + numel <= stored.numel for stored, start, numel in self.pieces)
        return inside and sum(piece.numel for piece in self.pieces) == math.prod(self.shape)

    def read(self) -> torch.Tensor:
        """The whole tensor, flattened, in the dtype it is stored in."""
        return torch.cat([piece.read() for piece in self.pieces])
