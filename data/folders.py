"""The cache: where it lies, and how one process at a time works in a folder of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.schema import Data
from data.places import locks


def cache_folder(data: Data) -> Path:
    """Where prepared rows live: data.cache_dir, $UMBEL_CACHE or ~/.cache/umbel."""
    return Path(data.cache_dir or os.environ.get("UMBEL_CACHE") or "~/.cache/umbel").expanduser()


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the lock beside ``folder``. Whoever holds it is alone, so what a killed writer left half written
    is removed."""
    with locks.locked(folder, lambda: say("waiting for another process that prepares the same")):
        for half_written in folder.rglob(".*.tmp"):
            half_written.unlink()
        yield
