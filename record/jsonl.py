"""Files of one JSON object per line that survive a kill at any byte."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from base.errors import UmbelError

TAIL_BYTES = 1 << 16


def append_lines(path: Path, lines: Iterable[dict[str, Any]], *, sync: bool = False) -> None:
    """Append whole lines with a single write, after dropping a line that an earlier writer left torn.

    ``sync`` waits until the disk has them. NaN and infinities become null: JSON has none.

    Raises:
        OSError: the disk is full or the file cannot be written; what was there stays.
    """
    data = b"".join(_encode(line) for line in lines)
    if not data:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # Two writers (launcher and worker) share events.jsonl; some network file systems have no flock.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = _drop_torn_line(descriptor)
        if os.write(descriptor, data) != len(data):
            os.ftruncate(descriptor, size)
            raise OSError(28, os.strerror(28), str(path))
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path, keys: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Every whole line. A missing file has none, and a torn last line does not count.

    Raises:
        UmbelError: a line other than a torn last one is no JSON object with these keys; says file:line.
    """
    whole = _read(path).rpartition(b"\n")[0]
    return [_decode(line, path, number, keys) for number, line in enumerate(whole.split(b"\n"), 1) if line]


def tail_lines(path: Path, size: int = TAIL_BYTES, keys: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The whole lines in the last ``size`` bytes: cheap on a file of any length."""
    data = _read(path, size)
    body = data.rpartition(b"\n")[0]
    if len(data) == size:
        body = body.partition(b"\n")[2]
    return [_decode(line, path, None, keys) for line in body.split(b"\n") if line]


def _encode(line: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(line, allow_nan=False, ensure_ascii=False)
    except ValueError:
        text = json.dumps({key: _finite(value) for key, value in line.items()}, ensure_ascii=False)
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _drop_torn_line(descriptor: int) -> int:
    """Cut the file after its last newline; returns its size."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - TAIL_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def _read(path: Path, size: int | None = None) -> bytes:
    try:
        with open(path, "rb") as file:
            if size is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read(size if size is not None else -1)
    except FileNotFoundError:
        return b""


def _decode(line: bytes, path: Path, number: int | None, keys: tuple[str, ...]) -> dict[str, Any]:
    where = str(path) if number is None else f"{path}:{number}"
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UmbelError("is not a line of JSON", where=where, fix="remove that line") from error
    if not isinstance(value, dict):
        raise UmbelError("is not a JSON object", where=where, fix="remove that line")
    if missing := [key for key in keys if key not in value]:
        raise UmbelError(f"lacks {', '.join(missing)}", where=where, fix="remove that line")
    return value
