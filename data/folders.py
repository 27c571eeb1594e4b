"""The cache: where it lies, and how one process at a time works in a folder of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.schema import Data


def cache_folder(data: Data) -> Path:
    """Where prepared rows live: data.cache_dir, $UMBEL_CACHE or ~/.cache/umbel."""
    return Path(data.cache_dir or os.environ.get("UMBEL_CACHE") or "~/.cache/umbel").expanduser()


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the lock beside ``folder``; the kernel frees it however its holder ends.

    Whoever holds it is alone, so what a killed writer left half written is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that prepares the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        for half_written in folder.rglob(".*.tmp"):
            half_written.unlink()
        yield
