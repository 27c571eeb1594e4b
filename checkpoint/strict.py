"""Reading what strangers wrote: plain files only, JSON without tricks, limits before any allocation."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from base.errors import UmbelError
from base.files import human_bytes
from checkpoint.format import Damaged

# What a value costs in memory beyond its text: an object 232 bytes, a list 72, anything else 64. Ours are at
# least so many bytes of text apart, those of a bomb 2. So what is parsed takes at most 10 times its text.
BYTES_APART = {b"{": 24, b"[": 16, b",": 8}
ANY_NUMBER = 1 << 12


@contextmanager
def open_plain(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; never follows a symbolic link, never waits on a pipe.

    Raises:
        Damaged: it is missing, no regular file, or a read of it fails.
        UmbelError: this process may not open any more files.
    """
    try:
        with open(path, "rb", opener=_plain_opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Damaged("is no regular file", where=str(path))
            yield file
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise UmbelError("too many open files", where=str(path), fix="raise ulimit -n") from error
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise Damaged(reason, where=str(path)) from error


def _plain_opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def plain_size(file: BufferedReader) -> int:
    return os.fstat(file.fileno()).st_size


def read_plain(path: Path, limit: int) -> bytes:
    """Content of a regular file of at most ``limit`` bytes.

    Raises:
        Damaged: larger than that, or as :func:`open_plain`.
    """
    with open_plain(path) as file:
        size = plain_size(file)
        if size > limit:
            raise Damaged(f"is larger than {human_bytes(limit)}", where=str(path))
        return file.read(size)


def parse_json(raw: bytes, where: str) -> Any:
    """One JSON value: UTF-8, no key twice, finite numbers, containers within proportion.

    Raises:
        Damaged: otherwise.
    """
    for mark, apart in BYTES_APART.items():
        if raw.count(mark) > len(raw) // apart + ANY_NUMBER:
            raise Damaged(f"holds more '{mark.decode()}' than any real file", where=where)
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except RecursionError as error:
        raise Damaged("is nested too deep", where=where) from error
    except ValueError as error:
        raise Damaged(f"is not JSON ({_first_line(error)})", where=where) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120]


@contextmanager
def no_garbage() -> Iterator[None]:
    """Collect no garbage meanwhile: a million values that cannot be any would be walked through in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def compact_json(value: Any) -> str:
    """One line of canonical JSON, a quarter of the indented size: an index holds a million numbers."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False) + "\n"


def is_count(value: Any) -> TypeGuard[int]:
    """A whole number that fits 63 bits, and no bool."""
    return type(value) is int and 0 <= value < 1 << 63


def is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_count, value))
