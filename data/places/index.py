"""The files of a source counted and pinned: several at a time, and each state of a file only once."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from base.errors import UmbelError
from data.files import FoundFile, SourceFile
from data.places.known import Known
from data.places.locks import locked
from data.places.measure import measure
from data.places.remote import fetched_path, remove
from data.places.retry import ChangedFile

SAVE_EVERY = 60.0
"""Seconds of work that a kill can cost."""
WORTH_TELLING = 1000
THREADS = 16
"""They wait for disks and servers; hashing and Parquet footers run without the interpreter's lock."""


@dataclass(frozen=True)
class Index:
    """The files of a source in order, and the names of those that are skipped."""

    files: tuple[SourceFile, ...]
    skipped: tuple[str, ...] = ()


def index(
    found: Sequence[FoundFile],
    store: Path,
    folder: Path,
    *,
    keep_bytes: int = 0,
    trust_etag: bool = False,
    skip_bad: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Index:
    """Count the rows of files, note where reading can begin, and take their pins.

    Args:
        store: the JSON file that remembers what was counted.
        folder: where files go that must be downloaded to be counted.
        keep_bytes: how much of them may stay there, for whoever reads them next.
        trust_etag: pin a remote file to its ETag where its server vouches for no hash.
        skip_bad: name the files that cannot be read, in place of an error.

    Raises:
        UmbelError: a file that cannot be read, or that changes while it is read.
    """
    with _first_alone(store, found) as known:
        return _index(found, known, _Room(folder, keep_bytes), trust_etag, skip_bad, say)


@contextlib.contextmanager
def _first_alone(store: Path, found: Sequence[FoundFile]) -> Iterator[Known]:
    """What is known, for whoever counts. All processes of a node start at once: one of them counts, and the
    others wait to find it done; what it could not count they then try side by side."""
    known, waited = Known(store), threading.Event()
    with contextlib.ExitStack() as stack:
        if not all(map(known.get, found)):
            with contextlib.suppress(OSError):  # a read-only cache costs time, and nothing else
                stack.enter_context(locked(store, waited.set))
            known = Known(store)
            if waited.is_set():
                stack.close()
        yield known


def _index(
    found: Sequence[FoundFile],
    known: Known,
    room: _Room,
    trust_etag: bool,
    skip_bad: bool,
    say: Callable[[str], None],
) -> Index:
    results = {file.location: result for file in found if (result := known.get(file))}
    fresh = [file for file in found if file.location not in results]
    if len(fresh) >= WORTH_TELLING:
        say(f"counting the rows of {len(fresh)} files")

    def attempt(file: FoundFile) -> tuple[SourceFile | None, int]:
        seen = time.time_ns()
        try:
            result = measure(file, room.folder, trust_etag)
            room.take(result)
            return result, seen
        except ChangedFile:
            raise
        except UmbelError:
            if not skip_bad:
                raise
            return None, seen

    saved = time.monotonic()
    with ThreadPoolExecutor(min(THREADS, 4 * (os.cpu_count() or 1))) as pool:
        for file, (result, seen) in zip(fresh, pool.map(attempt, fresh), strict=True):
            if result:
                results[file.location] = result
                known.put(file, result, seen)
            if time.monotonic() - saved > SAVE_EVERY:
                known.save()
                saved = time.monotonic()
    known.save(found)
    return Index(
        tuple(results[file.location] for file in found if file.location in results),
        tuple(file.name for file in found if file.location not in results),
    )


class _Room:
    """Deletes downloads once the folder is full."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._left = limit - sum(map(_size, folder.glob("*")))

    def take(self, file: SourceFile) -> None:
        if fetched_path(file, self.folder).is_file():
            with self._lock:
                self._left -= file.size
                full = self._left < 0
            if full:
                remove(file, self.folder)
                with self._lock:
                    self._left += file.size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process has just removed it
        return 0
