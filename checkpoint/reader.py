"""Loading: the newest whole checkpoint, and any range of any tensor in it, whoever saved it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from base.errors import UmbelError
from checkpoint import manifest as manifests
from checkpoint.cover import Piece, pieces
from checkpoint.folders import steps
from checkpoint.format import BUFFER, DTYPE_BYTES, Damaged, tensor_key
from checkpoint.hold import held
from checkpoint.openfiles import OpenFiles
from checkpoint.verify import Mode
from checkpoint.verify import verify as verify_folder

STREAMED = 1 << 18
"""Elements read at once by :meth:`StateReader.stream`: 2 MiB as float64."""


def latest(
    checkpoints: Path,
    *,
    verify: Mode,
    run_id: str | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Path | None:
    """The newest checkpoint that verifies, or None.

    Args:
        verify: "full" reads and hashes everything, "sizes" suits this machine's own checkpoints, "finite"
            passes one with a NaN by.
        run_id: refuse a checkpoint of any other run.
        warn: told of each damaged checkpoint that is passed by: which file, and why.

    Raises:
        Foreign: the newest whole one is of a newer format or of another run.
    """
    for folder in steps(checkpoints).values():
        try:
            verify_folder(folder, verify, run_id=run_id)
        except Damaged as error:
            warn(f"checkpoint passed by: {error}")
        else:
            return folder
    return None


class StateReader:
    """Random access to a checkpoint. Reads only the bytes asked for; safe to use from several threads.

    It checks the manifest, and size and header of each file on first touch; content is checked by
    :func:`checkpoint.verify.verify`. While it is open, retention leaves the checkpoint alone. ``digest``: its
    identity, as :func:`checkpoint.manifest.digest`.

    Raises:
        Damaged, Foreign: as :func:`checkpoint.manifest.read`.
    """

    def __init__(self, folder: Path, *, run_id: str | None = None) -> None:
        self.folder = folder
        with ExitStack() as stack:
            stack.enter_context(held(folder))
            self.manifest, self.digest = manifests.read_with_digest(folder, run_id=run_id)
            self._pieces = pieces(self.manifest["files"])
            self._files = stack.enter_context(OpenFiles(folder, self.manifest["files"]))
            self._stack = stack.pop_all()

    def names(self, kind: str) -> list[str]:
        """Sorted names of the parameters (or buffers) that have this kind."""
        return sorted(name for name, its_kind in self._pieces if its_kind == kind)

    def kinds(self, parameter: str) -> list[str]:
        """Sorted kinds stored for a parameter or buffer."""
        return sorted(kind for name, kind in self._pieces if name == parameter)

    def tensors(self) -> list[tuple[str, str]]:
        """Sorted (parameter or buffer, kind) of all that is stored."""
        return sorted(self._pieces)

    def size(self, parameter: str, kind: str) -> int:
        """Number of elements."""
        return self._of(parameter, kind)[-1].extent.stop

    def dtype(self, parameter: str, kind: str) -> str:
        """As safetensors spells it: "F32", "BF16", ..."""
        return self._of(parameter, kind)[0].extent.dtype

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Full shape of a parameter, trained or frozen, or of a buffer."""
        if parameter in self.manifest["parameters"]:
            return tuple(self.manifest["parameters"][parameter])
        return self._of(parameter, BUFFER)[0].extent.shape

    def read(
        self,
        parameter: str,
        kind: str,
        start: int = 0,
        stop: int | None = None,
        *,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Elements [start, stop) of the flattened tensor, as raw bytes.

        Args:
            out: a contiguous uint8 array of exactly that many bytes to fill; a new one by default.

        Returns:
            uint8 array of (stop - start) × bytes per element, little-endian.

        Raises:
            UmbelError: no such tensor, or a range outside it.
            Damaged: a file is not what the manifest says, or ends too early.
        """
        group = self._of(parameter, kind)
        stop = group[-1].extent.stop if stop is None else stop
        if not 0 <= start <= stop <= group[-1].extent.stop:
            raise UmbelError(f"no elements {start} to {stop} of '{parameter}|{kind}'", where=str(self.folder))
        width = DTYPE_BYTES[group[0].extent.dtype]
        group = [piece for piece in group if max(start, piece.extent.start) < min(stop, piece.extent.stop)]
        for piece in group:
            # What the manifest claims is believed, and memory allocated, once the files are as large as that.
            self._files.check(piece.file)
        out = np.empty((stop - start) * width, np.uint8) if out is None else out
        if out.nbytes != (stop - start) * width:
            raise ValueError(f"{out.nbytes} bytes to fill, {(stop - start) * width} asked for")
        for piece in group:
            first, last = max(start, piece.extent.start), min(stop, piece.extent.stop)
            target = out.data[(first - start) * width : (last - start) * width]
            self._files.fill(
                target, piece.file, tensor_key(parameter, kind), (first - piece.extent.start) * width
            )
        return out

    def stream(self, parameter: str, kind: str) -> Iterator[np.ndarray]:
        """A whole tensor as :meth:`read` gives it, piece by piece, in constant memory."""
        size = self.size(parameter, kind)
        for start in range(0, size, STREAMED):
            yield self.read(parameter, kind, start, min(start + STREAMED, size))

    def _of(self, parameter: str, kind: str) -> list[Piece]:
        try:
            return self._pieces[parameter, kind]
        except KeyError:
            raise UmbelError(f"holds no '{parameter}|{kind}'", where=str(self.folder)) from None

    def close(self) -> None:
        """Let the checkpoint go; what was read stays."""
        self._stack.close()

    def __enter__(self) -> StateReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
