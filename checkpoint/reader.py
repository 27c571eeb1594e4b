"""Loading: the newest whole checkpoint, and any range of any tensor in it, whoever saved it."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

from base.errors import UmbelError
from checkpoint import manifest as manifests
from checkpoint.cover import Piece, pieces
from checkpoint.folders import steps
from checkpoint.format import BUFFER, DTYPE_BYTES, Damaged
from checkpoint.fragment import read_fragments
from checkpoint.safetensors import Entry
from checkpoint.strict import open_plain
from checkpoint.verify import Mode
from checkpoint.verify import verify as verify_folder


def latest(
    checkpoints: Path,
    *,
    verify: Mode,
    run_id: str | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Path | None:
    """The newest checkpoint that verifies, or None.

    Args:
        verify: "full" reads and hashes everything, "sizes" suits this machine's own checkpoints.
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

    It checks the manifest, and size and header of each file on first touch; content by :func:`verify`.

    Raises:
        Damaged, Foreign: as :func:`checkpoint.manifest.read`.
    """

    def __init__(self, folder: Path, *, run_id: str | None = None) -> None:
        self.folder = folder
        self.manifest = manifests.read(folder, run_id=run_id)
        self._pieces = pieces(self.manifest["files"])
        self._files = {file["name"]: file for file in self.manifest["files"]}
        self._opened: dict[str, tuple[int, dict[str, Entry]]] = {}
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def names(self, kind: str) -> list[str]:
        """Sorted names of the parameters (or buffers) that have this kind."""
        return sorted(name for name, its_kind in self._pieces if its_kind == kind)

    def kinds(self, parameter: str) -> list[str]:
        """Sorted kinds stored for a parameter or buffer."""
        return sorted(kind for name, kind in self._pieces if name == parameter)

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
        out = np.empty((stop - start) * width, np.uint8) if out is None else out
        if out.nbytes != (stop - start) * width:
            raise ValueError(f"{out.nbytes} bytes to fill, {(stop - start) * width} asked for")
        for piece in group:
            first, last = max(start, piece.extent.start), min(stop, piece.extent.stop)
            if first < last:
                # Positioned reads, not a memory map: a file cut short then is an error, not a SIGBUS.
                target = out.data[(first - start) * width : (last - start) * width]
                self._fill(target, f"{parameter}|{kind}", piece, (first - piece.extent.start) * width)
        return out

    def _of(self, parameter: str, kind: str) -> list[Piece]:
        try:
            return self._pieces[parameter, kind]
        except KeyError:
            raise UmbelError(f"holds no '{parameter}|{kind}'", where=str(self.folder)) from None

    def _fill(self, target: memoryview, key: str, piece: Piece, skip: int) -> None:
        descriptor, entries = self._open(piece.file)
        position = entries[key].begin + skip
        while target:
            count = os.preadv(descriptor, [target], position)
            if not count:
                raise Damaged("ends too early", where=str(self.folder / piece.file))
            target, position = target[count:], position + count

    def _open(self, name: str) -> tuple[int, dict[str, Entry]]:
        with self._lock:
            if name not in self._opened:
                path = self.folder / name
                file = self._stack.enter_context(open_plain(path))
                self._opened[name] = (file.fileno(), read_fragments(file, self._files[name], str(path)))
            return self._opened[name]

    def close(self) -> None:
        self._opened.clear()
        self._stack.close()

    def __enter__(self) -> StateReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
