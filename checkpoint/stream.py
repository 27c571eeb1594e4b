"""Writing a large file whose sha256 is known at its end, with one core and one look at each byte."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType

CHUNK = 1 << 20
"""Bytes that are hashed and then copied while they are still in the core's cache.

Hashing on a thread of its own is no faster where all cores compute beside it, and takes twice the memory
traffic: with it, training ran at 93 % of its speed while 540 MB were written on two cores, without at 96 %.
"""

WRITE_BACK = 64 << 20
"""Bytes after which the disk is set to work, so that the fsync at the end has little left to wait for.

Without, 2 GiB on a virtual disk took up to four times as long, now and then; with it never.
"""


class HashedFile:
    """A new file whose sha256 is known when it is closed. On the disk (fsync) when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._digest = hashlib.sha256()
        self._dirty = 0
        self._file = open(path, "wb")  # noqa: SIM115 (closed when the block ends)

    def write(self, view: memoryview) -> None:
        """Append bytes (a flat view of them)."""
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self._digest.update(chunk)
            self._file.write(chunk)
            self._dirty += len(chunk)
            if self._dirty >= WRITE_BACK:
                self._start_write_back()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def _start_write_back(self) -> None:
        """On Linux this begins to write what is dirty, waits for nothing, and drops what is on the disk."""
        self._dirty = 0
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
