"""What is known of files already counted: one JSON file per source, so that a second start reads none.

An entry counts while location, size and stamp are the same. A local file may change twice within one tick
of its clock: as in git's index, times that were young when the file was read are not remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from base.files import write_text
from data.files import FoundFile, SourceFile

VERSION = 1
YOUNG_NS = 2_000_000_000


class Known:
    """Entries by location. A file that cannot be read, or is of another version, holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, list[Any]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            value = json.loads(path.read_bytes())
            if value["version"] == VERSION:
                self._entries = value["files"]

    def get(self, file: FoundFile) -> SourceFile | None:
        """What the same state of the file came to."""
        entry = self._entries.get(file.location)
        if not file.stamp or not entry or entry[:3] != [file.size, file.stamp, file.kind]:
            return None
        pin, rows, blocks = entry[3:]
        places = tuple((first, place) for first, place in blocks)
        return SourceFile(file.name, file.location, file.kind, file.size, pin, rows, places)

    def put(self, file: FoundFile, result: SourceFile, seen: int) -> None:
        """Remember a file that was read from the time ``seen`` (ns since the epoch) on."""
        young = not result.is_remote and max(map(int, file.stamp.split(":"))) + YOUNG_NS > seen
        if file.stamp and not young:
            entry = [file.size, file.stamp, file.kind, result.pin, result.rows, result.blocks]
            self._entries[file.location] = entry
            self._changed = True

    def save(self, of: Iterable[FoundFile] | None = None) -> None:
        """Write what is new; of a whole listing ``of`` the entries of files that are gone are dropped."""
        if of is not None:
            kept = {file.location for file in of} & self._entries.keys()
            self._changed |= len(kept) < len(self._entries)
            self._entries = {location: self._entries[location] for location in sorted(kept)}
        if self._changed:
            text = json.dumps({"version": VERSION, "files": self._entries}, separators=(",", ":"))
            # It saves time and nothing else: a full or read-only disk is told by what must be written.
            with contextlib.suppress(OSError):
                write_text(self.path, text)
                self._changed = False


def state_of(path: str | Path) -> tuple[int, str]:
    """Size and stamp of a local file: the times of the last change of its bytes, and of anything about it."""
    state = os.stat(path)
    return state.st_size, f"{state.st_mtime_ns}:{state.st_ctime_ns}"
