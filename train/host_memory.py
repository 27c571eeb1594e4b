"""Memory that this process shares with its writer, page-locked where a device copies into it."""

from __future__ import annotations

import ctypes
import warnings
from contextlib import suppress
from typing import Protocol

import torch

PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every context


class ArenaOwner(Protocol):
    """`checkpoint.background.BackgroundWriter`."""

    def arena(self, nbytes: int) -> memoryview:
        """Shared memory of at least so many bytes, in place of what it gave before."""


class HostMemory:
    """An arena as bytes, allocated when it is first needed.

    Args:
        pinned: page-lock it, so that copies from a device run beside other work. Where that is refused,
            copies hold the host, and a warning says so once.
    """

    def __init__(self, owner: ArenaOwner, *, pinned: bool) -> None:
        self.owner, self.pinned, self.registered = owner, pinned, False
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def require(self, nbytes: int) -> bool:
        """Have at least so much; says whether it is new memory, which holds nothing yet."""
        if nbytes <= self.bytes.numel():
            return False
        self.release()
        self.bytes = torch.frombuffer(self.owner.arena(nbytes), dtype=torch.uint8)
        if self.pinned:
            self._register()
        return True

    def release(self) -> None:
        """Let go of it: the owner cannot close memory that others look at."""
        if self.registered:
            torch.cuda.cudart().cudaHostUnregister(self.bytes.data_ptr())
        self.registered, self.bytes = False, torch.empty(0, dtype=torch.uint8)

    def place(self, offset: int, like: torch.Tensor) -> torch.Tensor:
        """The place of a tensor of this shape and dtype."""
        return self.bytes.narrow(0, offset, like.nbytes).view(like.dtype).view(like.shape)

    def write(self, offset: int, data: bytes) -> None:
        ctypes.memmove(self.bytes.data_ptr() + offset, data, len(data))

    def copy(self, offset: int, tensor: torch.Tensor) -> None:
        """Copy a contiguous host tensor with one thread, and without the interpreter.

        `torch.Tensor.copy_` would take as many threads again as torch computes with.
        """
        ctypes.memmove(self.bytes.data_ptr() + offset, tensor.data_ptr(), tensor.nbytes)

    def _register(self) -> None:
        # As torch/distributed/_state_dict_utils.py, `_create_cpu_state_dict`, pins memory that is shared.
        address, nbytes = self.bytes.data_ptr(), self.bytes.nbytes
        refused = int(torch.cuda.cudart().cudaHostRegister(address, nbytes, PORTABLE))
        self.registered = refused == 0
        if not refused:
            return
        with suppress(RuntimeError):
            # CUDA keeps the error for whoever asks next, which would be a kernel of the training.
            torch.zeros(1, device="cuda").add_(1)
        self.pinned = False
        warnings.warn(
            f"{nbytes >> 20} MiB of host memory for checkpoints could not be page-locked (CUDA error "
            f"{refused}): a save holds the step while it copies",
            stacklevel=2,
        )
