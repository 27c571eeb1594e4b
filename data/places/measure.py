"""One file counted and pinned, with as little reading as its kind and its server allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from base.errors import UmbelError
from data.files import Blocks, FoundFile, SourceFile
from data.places import remote
from data.places.known import state_of
from data.places.pins import pin_of
from data.places.retry import BadFile, BrokenTransfer, ChangedFile, persist
from data.places.urls import is_url, open_filesystem
from data.readers import columns, count, count_parquet
from data.readers.parquet import columns as columns_parquet

Result = TypeVar("Result")
WHOLE: Blocks = ((0, 0),)
FOOTER_BYTES = 1 << 16
"""How much of a remote Parquet file's end is asked for at once."""


def measure(file: FoundFile, folder: Path, trust_etag: bool = False) -> SourceFile:
    """Rows, blocks and pin of a file; what must be downloaded for that goes into ``folder``.

    Raises:
        BadFile: it cannot be read.
        ChangedFile: it changes while it is read.
        UmbelError: it is broken, and says where.
    """
    if not is_url(file.location):
        return _measure_local(file)
    pinned = _pinned(file, trust_etag)
    if pinned and file.kind == "text":
        return pinned
    if pinned and file.kind == "parquet" and (footer := _from_footer(file, count_parquet)):
        return replace(pinned, rows=footer[0], blocks=footer[1])
    pinned = pinned or remote.fetch_unpinned(file, folder)
    rows, blocks = _count(remote.fetch(pinned, folder), file)
    return replace(pinned, rows=rows, blocks=blocks)


def columns_of(file: FoundFile, folder: Path, trust_etag: bool = False) -> list[str]:
    """The columns of a file, local or remote.

    Raises:
        BadFile: it cannot be read.
    """
    if not is_url(file.location):
        return columns(Path(file.location), file.kind)
    pinned = _pinned(file, trust_etag)
    if pinned and file.kind == "parquet" and (names := _from_footer(file, columns_parquet)):
        return names
    return columns(remote.fetch(pinned or remote.fetch_unpinned(file, folder), folder), file.kind)


def _pinned(file: FoundFile, trust_etag: bool) -> SourceFile | None:
    """The file under the pin that its server gives, if any, taken for one row."""
    pin = file.pin or (f"etag:{file.etag}" if trust_etag and file.etag else None)
    return SourceFile(file.name, file.location, file.kind, file.size, pin, 1) if pin else None


def _measure_local(file: FoundFile) -> SourceFile:
    path = Path(file.location)
    try:
        pin = pin_of(path)
        rows, blocks = _count(path, file)
        state = state_of(path)
    except OSError as error:
        raise BadFile(f"cannot be read ({error.strerror or error})", where=file.location) from error
    if state != (file.size, file.stamp):
        raise ChangedFile("changes while it is read", where=file.location, fix="wait until it is complete")
    return SourceFile(file.name, file.location, file.kind, file.size, pin, rows, blocks)


def _count(path: Path, file: FoundFile) -> tuple[int, Blocks]:
    return (1, WHOLE) if file.kind in ("text", "python") else count(path, file.kind)


def _from_footer(file: FoundFile, read: Callable[[BinaryIO, str], Result]) -> Result | None:
    """What the end of a remote Parquet file tells; None where the server sends no ranges, or what came is
    no footer: the whole file, checked by its hash, will tell."""

    def attempt() -> Result | None:
        system, path = open_filesystem(file.location)
        try:
            with system.open(path, "rb", block_size=FOOTER_BYTES) as stream:
                return read(stream, file.location)
        except UmbelError as error:
            if isinstance(error.__cause__, ValueError):  # pyarrow's, too
                return None
            raise BrokenTransfer(error.what) from error.__cause__
        except ValueError:
            return None

    return persist(attempt, file.location)
