"""One process at a time works on a run: a kernel lock, which even kill -9 releases."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from base.errors import UmbelError
from record.folder import RunFolder

HANDED_DOWN = "UMBEL_LAUNCH_LOCK"
"""Environment: the number of the descriptor by which a launcher hands its lock to the run's supervisor."""

_POLL_SECONDS = 0.05


class RunLock:
    """An exclusive flock on ``control/<name>``.

    Rank 0 of the worker holds ``lock`` while it lives; whoever starts workers holds ``launch`` from before
    the data is prepared until they end: the launcher and its supervisor together.
    """

    def __init__(self, folder: RunFolder, name: str = "lock") -> None:
        self.folder, self.file = folder, folder.control / name
        self.descriptor: int | None = None

    def acquire(self, wait_seconds: float = 1.0) -> RunLock:
        """Take the lock, waiting at most ``wait_seconds`` (a moment is needed: `is_held` probes by locking).

        Raises:
            UmbelError: somebody else has it; says who.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o664)
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise self._taken()
            time.sleep(_POLL_SECONDS)
        self._hold(descriptor)
        self.sign(os.getpid())
        return self

    def adopt(self, descriptor: int) -> RunLock:
        """Hold the lock through a descriptor that a parent handed down (`shared`)."""
        os.set_inheritable(descriptor, False)
        self._hold(descriptor)
        return self

    def sign(self, pid: int) -> None:
        """Say which process `holder` tells others about: ours, or a child that keeps the descriptor open."""
        assert self.descriptor is not None
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps({"pid": pid, "host": socket.gethostname()}).encode(), 0)

    @contextlib.contextmanager
    def shared(self) -> Iterator[int]:
        """A second descriptor of the lock, to hand to a child: the lock is held until both have closed it."""
        assert self.descriptor is not None
        copy = os.dup(self.descriptor)
        try:
            yield copy
        finally:
            os.close(copy)

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    _forget = release

    def _hold(self, descriptor: int) -> None:
        self.descriptor = descriptor
        # A forked helper that outlives us must not keep the run locked.
        os.register_at_fork(after_in_child=self._forget)

    def __enter__(self) -> RunLock:
        return self if self.descriptor is not None else self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _taken(self) -> UmbelError:
        owner = _read_owner(self.file)
        by = f" by process {owner['pid']} on {owner['host']}" if owner else ""
        return UmbelError(
            f"is in use{by}", where=str(self.folder.path), fix=f"umbel stop {self.folder.handle}"
        )


def is_held(folder: RunFolder, name: str = "lock") -> bool:
    """Whether a living process works on the run."""
    try:
        descriptor = os.open(folder.control / name, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def holder(folder: RunFolder, name: str = "lock") -> dict[str, Any] | None:
    """``{"pid": …, "host": …}`` of the process that works on the run, or None."""
    return _read_owner(folder.control / name) if is_held(folder, name) else None


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_owner(file: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and {"pid", "host"} <= owner.keys() else None
