"""A copy of the live state, made while the next step is computed.

Only an update writes to master weights and moments: until the next one, forward and backward passes and the
copy read the same tensors side by side. On CUDA the copy has a stream of its own, and the next update is
queued behind it; what lies in host memory is copied by one thread, for which the next update waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from checkpoint.arena import ALIGNMENT
from checkpoint.fragment import Fragment
from checkpoint.job import Slot
from train.engine import Engine
from train.host_memory import ArenaOwner, HostMemory
from train.portable import SAFETENSORS, stored
from train.state import FROZEN

Copy = tuple[torch.Tensor, Slot]
Then = Callable[[list[Slot]], object]


class Snapshot:
    """What this process owns of the state, copied into memory that it shares with its writer.

    Every tensor has its place there for the engine's life, and nothing is allocated before the first copy.

    Args:
        with_frozen: whether frozen weights are part of it (`train.portable.stored`). They never change, so
            they are copied once.

    Attributes:
        nbytes: size of what this process owns of the state.
    """

    def __init__(self, engine: Engine, writer: ArenaOwner, with_frozen: bool = True) -> None:
        self.nbytes = 0
        self._copies: list[Copy] = []
        self._end = 0
        for piece in stored(engine.state.owned(), with_frozen):
            for kind, view in piece.views.items():
                self._lay_out(piece.parameter, kind, piece.start, view)
        cuda = any(view.is_cuda for view, _ in self._copies)
        self._stream = torch.cuda.Stream(engine.world.device) if cuda else None
        self._memory = HostMemory(writer, pinned=cuda)
        self._holds_frozen = False
        self._thread: threading.Thread | None = None
        self._event: torch.cuda.Event | None = None  # the device has copied its part
        self._host_copied = threading.Event()
        self._error: BaseException | None = None

    def _lay_out(self, parameter: str, kind: str, start: int, view: torch.Tensor) -> None:
        slot = Slot(parameter, kind, start, SAFETENSORS[view.dtype], tuple(view.shape), self._end)
        self._copies.append((view, slot))
        self._end += _aligned(view.nbytes)
        self.nbytes += view.nbytes

    @property
    def busy(self) -> bool:
        """Whether a copy is under way, or not yet handed on."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, eager: Sequence[Fragment], then: Then) -> None:
        """Begin to copy the state as it is now.

        The writer must be done with the copy before: this one takes its place.

        Args:
            eager: small things beside the state, which a forward pass may change: copied before this returns.
            then: called with all slots, from a thread, as soon as everything is in the arena.

        Raises:
            Exception: what went wrong in the thread of the copy before.
        """
        self.wait()
        if self._memory.require(self._end + sum(_aligned(piece.nbytes) for piece in eager)):
            self._holds_frozen = False
        slots = [slot for _, slot in self._copies] + self._put(eager)
        due = [copy for copy in self._copies if not (self._holds_frozen and copy[1].kind == FROZEN)]
        self._enqueue([copy for copy in due if copy[0].is_cuda])
        self._host_copied.clear()
        on_host = [copy for copy in due if not copy[0].is_cuda]
        self._thread = threading.Thread(target=self._finish, args=(on_host, slots, then), name="snapshot")
        self._thread.start()

    def settle(self) -> float:
        """Make the next update come after the copy; returns the seconds the host was held.

        Nothing to do when no copy is under way. For what lies in host memory the host waits, until it is
        handed on. For the rest the device's current stream waits, and the host goes on.

        Raises:
            Exception: what went wrong in the thread.
        """
        if self._thread is None:
            return 0.0
        began = time.perf_counter()
        self._host_copied.wait()
        if self._event is None or not self.busy:
            self.wait()
        else:
            torch.cuda.current_stream(self._event.device).wait_event(self._event)
        return time.perf_counter() - began

    def wait(self) -> None:
        """Hold the host until the copy is whole and handed on.

        Raises:
            Exception: what went wrong in the thread.
        """
        if self._thread is None:
            return
        self._thread.join()
        error, self._thread, self._event, self._error = self._error, None, None, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Let go of the writer's memory, before the writer does."""
        with suppress(Exception):
            self.wait()
        self._memory.release()

    def _put(self, eager: Sequence[Fragment]) -> list[Slot]:
        """Copy small things to the end of the arena."""
        slots, offset = [], self._end
        for piece in eager:
            self._memory.write(offset, bytes(piece.data() if callable(piece.data) else piece.data))
            slots.append(Slot(piece.parameter, piece.kind, piece.start, piece.dtype, piece.shape, offset))
            offset += _aligned(piece.nbytes)
        return slots

    def _enqueue(self, copies: Sequence[Copy]) -> None:
        """Queue copies from the device behind what is queued there by now."""
        if self._stream is None or not copies:
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            # The allocator need not hear of this stream (record_stream): the state outlives the copy.
            for view, slot in copies:
                self._memory.place(slot.offset, view).copy_(view, non_blocking=True)
        self._event = self._stream.record_event()

    def _finish(self, copies: Sequence[Copy], slots: list[Slot], then: Then) -> None:
        """The thread: copy what lies in host memory, wait for the device, hand the slots on."""
        try:
            for view, slot in copies:
                self._memory.copy(slot.offset, view)
            self._host_copied.set()
            if self._event is not None:
                # A new thread's own device would be the first, whoever's it is.
                with torch.cuda.device(self._event.device):
                    self._event.synchronize()
            self._holds_frozen = True
            then(slots)
        except BaseException as error:
            self._error = error
        finally:
            self._host_copied.set()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
