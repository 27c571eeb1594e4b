"""Who reads a checkpoint for long keeps it from being deleted: kernel locks, which even kill -9 releases.

The lock is a flock on the manifest: shared for readers, exclusive for whoever deletes. A file system without
locks (Lustre mounted without them) protects nobody, and hinders nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from checkpoint.format import MANIFEST, Damaged
from checkpoint.strict import open_plain

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a checkpoint from being deleted by retention while the block lasts.

    Raises:
        Damaged: it has no manifest, or is being deleted just now.
    """
    path = folder / MANIFEST
    with open_plain(path) as file:
        if not _lock(file.fileno(), fcntl.LOCK_SH) or not _is_still(path, file.fileno()):
            raise Damaged("is being deleted", where=str(folder))
        yield


@contextmanager
def unheld(folder: Path) -> Iterator[bool]:
    """Whether nobody holds a checkpoint; if so, nobody can while the block lasts. Never waits."""
    descriptor = _open(folder / MANIFEST)
    if descriptor is None:
        yield True  # without a manifest it is nothing that anybody could read
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int | None:
    # Over NFS an exclusive lock wants a file that is open for writing.
    for access in (os.O_RDWR, os.O_RDONLY):
        with suppress(OSError):
            return os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
    return None


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path still leads to the file that was locked: it may have been deleted before."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))
