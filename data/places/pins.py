"""What a file's content is known by: hashes in four spellings, taken and checked."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from base.files import CHUNK
from data.files import SourceFile
from data.places.retry import BadFile, ChangedFile

RESTORE = "restore it, or start a run under another name"


def pin_of(path: Path, kind: str = "sha256") -> str:
    """``sha256:…``, ``md5:…`` or ``git:…`` (the sha1 of a git blob) of a local file."""
    if kind == "git":
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


def mismatch(path: Path, file: SourceFile) -> str | None:
    """How a local file differs from what ``file`` is pinned to; None where it does not. An ETag says
    nothing about bytes: of those only the size is compared."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes in place of {file.size}"
    kind = file.pin.partition(":")[0]
    if kind == "etag":
        return None
    found = pin_of(path, kind)
    return None if found == file.pin else f"{found} in place of {file.pin}"


def check_local(file: SourceFile) -> Path:
    """The path of a local file, its bytes checked once per process and state of the file.

    Raises:
        BadFile: it cannot be read.
        ChangedFile: its content is not what it was.
    """
    path = Path(file.location)
    try:
        difference = _checked(path, file, *_state(path))
    except OSError as error:
        raise BadFile(f"cannot be read ({error.strerror or error})", where=file.location) from error
    if difference:
        raise ChangedFile(f"has changed ({difference})", where=file.location, fix=RESTORE)
    return path


def is_checked(path: Path, file: SourceFile) -> bool:
    """Whether ``path`` is there and holds what ``file`` is pinned to."""
    try:
        return _checked(path, file, *_state(path)) is None
    except FileNotFoundError:
        return False


def _state(path: Path) -> tuple[int, int, int]:
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


@functools.lru_cache(maxsize=1 << 16)
def _checked(path: Path, file: SourceFile, *_: int) -> str | None:
    return mismatch(path, file)
