"""A folder of files that can be made again: what killed writers leave, and what goes when space runs out."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from data.places.locks import locked

YOUNG = 60.0
"""Seconds since its last use in which nothing is given up."""

DOWNLOADS = ".downloads"
ABANDONED = 24 * 3600.0
"""Seconds without a byte after which a folder of downloads is taken for a dead process's."""


def remove_unfinished(path: Path) -> None:
    """Remove what killed writers of ``path`` left (`base.files.atomic_file`). Its lock must be held."""
    for half_written in path.parent.glob(f".{path.name}.*.tmp"):
        half_written.unlink(missing_ok=True)


def evict(folder: Path, pattern: str, limit_bytes: int) -> None:
    """Delete the least recently used files until they take at most ``limit_bytes``, and abandoned downloads.

    Use is what a file's modification time says. Whoever has one of them open keeps it.
    """
    with locked(folder / "evict"):
        now = time.time()
        states = []
        for path in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                states.append((path.stat(), path))
        used = sum(state.st_size for state, _ in states)
        for state, path in sorted(states, key=lambda entry: entry[0].st_mtime):
            if used <= limit_bytes or now - state.st_mtime < YOUNG:
                break
            path.unlink(missing_ok=True)
            used -= state.st_size
        for downloads in folder.glob(f"*{DOWNLOADS}"):
            if now - _last_written(downloads) > ABANDONED:
                shutil.rmtree(downloads, ignore_errors=True)


def _last_written(folder: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    return time.time()  # its owner is just removing it
