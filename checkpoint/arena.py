"""Memory that a worker shares with the process that writes for it.

It has no name (memfd_create(2)): nothing of it lies in a file system, and it is gone with the last process
that holds it, however that one ends.
"""

from __future__ import annotations

import errno
import mmap
import os

from base.errors import RunFailed, UmbelError
from base.files import human_bytes

ALIGNMENT = 64
"""Of a slot's offset: a cache line, and a multiple of every element size."""


class Arena:
    """Shared memory that grows, never shrinks, and starts at a page; :meth:`view` sees the growth.

    Args:
        descriptor: of an arena made by another process; by default a new one, of no bytes.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("umbel-checkpoint") if descriptor is None else descriptor
        self._view = memoryview(b"")

    def grow(self, nbytes: int) -> None:
        """Have at least so many bytes, all of them in memory now and not when they are first written.

        Views that were given before stay good, and show the same memory.

        Raises:
            RunFailed: this host has not that much.
            UmbelError: nor may a file be that large.
        """
        if nbytes <= self.nbytes:
            return
        try:
            os.posix_fallocate(self.descriptor, 0, nbytes)
        except OSError as error:
            what = f"the copy of the state that is saved from takes {human_bytes(nbytes)} of host memory"
            if error.errno == errno.EFBIG:  # shared memory counts as a file here
                raise UmbelError(
                    f"{what}, more than a file may have here",
                    fix="raise the limit on file sizes (ulimit -f), or say checkpoint.asynchronous=false",
                ) from error
            raise RunFailed(
                f"{what} ({error.strerror})",
                fix="free some, save from more processes, or say checkpoint.asynchronous=false",
            ) from error

    def view(self) -> memoryview:
        """All of it, writable."""
        if len(self._view) != self.nbytes:
            # The old mapping goes when the last view of it does.
            self._view = memoryview(mmap.mmap(self.descriptor, self.nbytes))
        return self._view

    @property
    def nbytes(self) -> int:
        return os.fstat(self.descriptor).st_size

    def close(self) -> None:
        """Give it back, as soon as no view of it is left."""
        self._view = memoryview(b"")
        os.close(self.descriptor)
