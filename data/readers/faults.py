"""What can be wrong with a file, said in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from base.errors import RunFailed
from data.files import Kind, SourceFile
from data.places.retry import BadFile, ChangedFile

NOT_THE_FILES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def where_of(kind: Kind, place: str, row: int) -> str:
    """A row, as errors name it; rows count from 0 here and from 1 in the name."""
    if kind == "jsonl":
        return f"{place}:{row + 1}"
    return f"{place} row {row + 1}" if kind in ("parquet", "arrow") else place


@contextmanager
def naming(place: str, what: str = "cannot be read") -> Iterator[None]:
    """Turn what goes wrong while reading into an error that names the file.

    Raises:
        BadFile: the file is missing, cut off or damaged.
        RunFailed: this process has no memory or no file handles left.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        local = isinstance(error, MemoryError) or getattr(error, "errno", None) in NOT_THE_FILES_FAULT
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise (RunFailed if local else BadFile)(f"{what} ({reason})", where=place) from error


def changed(place: str, file: SourceFile, found: str) -> ChangedFile:
    """The rows are not those that were counted."""
    fix = "restore it, or start a run under another name"
    return ChangedFile(f"has changed ({found}, where {file.rows} rows were counted)", where=place, fix=fix)


def kind_name(value: Any) -> str:
    """A value's kind in plain words: ``a list``."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        bytes: "bytes",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
