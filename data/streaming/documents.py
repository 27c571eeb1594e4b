"""A source's documents by number, while streaming: any of them at any time, from this node's cache.

The files of a source are bundled, many small ones or one large one. Who first asks for a document of a
bundle fetches its files, reads every row and writes the texts to one Arrow file; all processes of the node
map that file. It is named by all that its content depends on, so it is never out of date.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from base.errors import UmbelError
from base.files import atomic_file, sha256_json
from configs.schema import Filters
from data.document import Document
from data.files import OpenSource, SourceFile
from data.places.locks import locked
from data.places.remote import fetch as fetch_file
from data.readers import place_of, read
from data.readers.faults import where_of
from data.readers.record import chat
from data.streaming.cache import DOWNLOADS, YOUNG, evict, remove_unfinished
from data.streaming.text_file import TextFile, write_texts

VERSION = 2
BUNDLE_BYTES = 16_000_000
BUNDLE_FILES = 1000
OPEN_BUNDLES = 64
FETCHES = 16
"""Files of a bundle that are downloaded at a time."""

Fetch = Callable[[SourceFile, Path], Path]


class DocumentStore:
    """Random access to the documents of a source.

    Args:
        source: the source.
        filters: what leaves documents out.
        folder: this node's cache; other sources may use the same.
        limit_bytes: what the Arrow files in ``folder`` may take together; those in use stay all the same.
        fetch: a local file of the content a file is pinned to; downloads go into the folder it is given.
    """

    def __init__(
        self,
        source: OpenSource,
        filters: Filters,
        folder: Path,
        limit_bytes: int,
        fetch: Fetch = fetch_file,
    ) -> None:
        self.source, self.filters, self.folder, self.limit_bytes = source, filters, folder, limit_bytes
        self._fetch = fetch
        self._skipped = frozenset(source.skipped)
        self._bundles = bundles_of(source.files)
        self._firsts = [source.first_number(bundle.start) for bundle in self._bundles]
        self._opened = lru_cache(maxsize=OPEN_BUNDLES)(self._open)

    @property
    def rows(self) -> int:
        """How many numbers there are, blank and filtered rows included."""
        return self.source.rows

    def get(self, number: int) -> Document | None:
        """A document; None where its row is blank, a filter leaves it out, or its file is skipped.

        Raises:
            BadFile, ChangedFile: a file that cannot be had, or is not what it was, by name.
            UmbelError: a row that cannot be read, or a cache that cannot be written.
        """
        index, row = self.source.locate(number)
        bundle = self.bundle_of(number)
        content = self._opened(bundle).get(number - self._firsts[bundle])
        if content is None:
            return None
        file = self.source.files[index]
        where = where_of(file.kind, place_of(file), row)
        if self.source.reading.format == "messages":
            return chat(json.loads(content), where, number)
        return Document(where, content, None, number)

    def bundle_of(self, number: int) -> int:
        """Which bundle a document lies in."""
        return bisect_right(self._firsts, number) - 1

    def _open(self, bundle: int) -> OpenBundle:
        """Open a bundle's file, made before if it is not there."""
        files = [self.source.files[index] for index in self._bundles[bundle]]
        path = self.folder / f"{self._key(files)}.arrow"
        rows = sum(file.rows for file in files)
        try:
            if found := _open_whole(path, rows):
                return found
            with locked(path):
                # Another process may have made it meanwhile.
                if not (found := _open_whole(path, rows)):
                    self._make(path, files)
                    found = OpenBundle(path)
            evict(self.folder, "*.arrow", self.limit_bytes)
        except OSError as error:
            fix = "free space there, or set data.cache_dir or data.cache_gb"
            where = str(error.filename or self.folder)
            raise UmbelError(f"cannot be used ({error.strerror or error})", where=where, fix=fix) from error
        return found

    def _key(self, files: Sequence[SourceFile]) -> str:
        """A name for all that the texts depend on. An ETag means nothing without its server, and what the
        Python corpus and regular expressions say may change with Python."""
        contents = [
            [file.name, file.kind, file.pin, file.size, file.rows, file.name in self._skipped]
            + ([file.location] if file.pin.startswith("etag:") else [])
            for file in files
        ]
        settings = [VERSION, sys.version_info[:2], asdict(self.source.reading), asdict(self.filters)]
        return sha256_json([settings, contents])[:32]

    def _make(self, path: Path, files: Sequence[SourceFile]) -> None:
        remove_unfinished(path)
        downloads = path.with_suffix(DOWNLOADS)
        paths = self._fetch_all(files, downloads)
        with atomic_file(path) as out:
            write_texts(out, self._texts(files, paths, downloads))
        shutil.rmtree(downloads, ignore_errors=True)

    def _fetch_all(self, files: Sequence[SourceFile], downloads: Path) -> dict[str, Path]:
        wanted = [file for file in files if file.rows and file.name not in self._skipped]
        pool = ThreadPoolExecutor(FETCHES)
        try:
            paths = pool.map(lambda file: self._fetch(file, downloads), wanted)
            return {file.name: path for file, path in zip(wanted, paths, strict=True)}
        finally:
            pool.shutdown(cancel_futures=True)

    def _texts(
        self, files: Sequence[SourceFile], paths: dict[str, Path], downloads: Path
    ) -> Iterator[str | None]:
        """What is stored for every row of the files, in order."""
        for file in files:
            row = 0
            if file.name in paths:
                for document in read(paths[file.name], file, self.source.reading, self.filters, 0):
                    yield from (None for _ in range(row, document.number))
                    yield _stored(document)
                    row = document.number + 1
                if not file.is_remote:
                    # A file that was written to while it was read is found out here.
                    self._fetch(file, downloads)
            yield from (None for _ in range(row, file.rows))


class OpenBundle(TextFile):
    """A bundle's texts; using them keeps its file young."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._touch()
        super().__init__(path)

    def get(self, row: int) -> str | None:
        if time.monotonic() - self._touched > YOUNG / 2:
            self._touch()
        return super().get(row)

    def _touch(self) -> None:
        self._touched = time.monotonic()
        with contextlib.suppress(OSError):  # deleted by another process, or not ours to write
            os.utime(self.path)


def bundles_of(files: Sequence[SourceFile]) -> list[range]:
    """Indices of neighbouring files that are kept together: as many as stay within `BUNDLE_BYTES`."""
    bundles, start, size = [], 0, 0
    for index, file in enumerate(files):
        if index > start and (size + file.size > BUNDLE_BYTES or index - start == BUNDLE_FILES):
            bundles.append(range(start, index))
            start, size = index, 0
        size += file.size
    return [*bundles, range(start, len(files))] if files else []


def _open_whole(path: Path, rows: int) -> OpenBundle | None:
    """None where there is no such file, or a disk fault has left it short."""
    try:
        opened = OpenBundle(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    return opened if len(opened) == rows else None


def _stored(document: Document) -> str:
    """A chat keeps the order of its keys: templates may show it."""
    messages: Any = document.messages
    return document.text if messages is None else json.dumps(messages, ensure_ascii=False)
