"""Writing a large file at the speed of its slowest part: hash, copy and disk work at the same time."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType

CHUNK = 4 << 20

WRITE_BACK = 64 << 20
"""Bytes after which the disk is set to work, so that the fsync at the end has little left to wait for.

2 GiB on a virtual disk, six times: 1.91 to 2.00 GiB/s with it, 0.40 to 1.97 without; sha256 alone: 1.97.
"""


class HashedFile:
    """A new file whose sha256 is known when it is closed; hashed on a thread beside the writing.

    Bytes that were given must stay as they are until :meth:`settle` or the end of the block. On the disk
    (fsync) when the block ends well.
    """

    def __init__(self, path: Path) -> None:
        self._digest = hashlib.sha256()
        self._dirty = 0
        self._waiting: Queue[memoryview | None] = Queue()
        self._file = open(path, "wb")  # noqa: SIM115 (closed when the block ends)
        self._hasher = Thread(target=self._hash, daemon=True)
        self._hasher.start()

    def write(self, view: memoryview) -> None:
        """Append bytes (a flat view of them)."""
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self._waiting.put(chunk)
            self._file.write(chunk)
            self._dirty += len(chunk)
            if self._dirty >= WRITE_BACK:
                self._start_write_back()

    def settle(self) -> None:
        """Wait until nothing that was given is needed any more."""
        self._waiting.join()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if error is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
        finally:
            self._waiting.put(None)
            self._hasher.join()

    def _start_write_back(self) -> None:
        """On Linux this begins to write what is dirty, waits for nothing, and drops what is on the disk."""
        self._dirty = 0
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _hash(self) -> None:
        while (chunk := self._waiting.get()) is not None:
            self._digest.update(chunk)
            del chunk
            self._waiting.task_done()
