"""The files that a path stands for: a file, a folder, a glob, on this machine or behind a URL."""

from __future__ import annotations

import functools
import glob
import itertools
from collections.abc import Iterable
from pathlib import Path

from base.errors import UmbelError

Listed = dict[str, Path]
"""Name, relative to what was asked for, to path; in order of name."""


def list_local(path: str, where: str) -> Listed:
    """The files of a file, folder (hidden ones left out) or glob, sorted, named relative to it.

    Raises:
        UmbelError: nothing is there.
    """
    place = Path(path).expanduser().absolute()
    if place.is_file():
        return {place.name: place}
    found: Iterable[Path]
    if place.is_dir():
        found = place.rglob("*")
    elif glob.has_magic(path):
        found = map(Path, glob.iglob(str(place), recursive=True))
    else:
        raise UmbelError("no such file or folder", where=where, fix="check the path")
    root = local_root(path)
    names = {file.relative_to(root).as_posix(): file for file in found if file.is_file()}
    if not (visible := sorted(name for name in names if not is_hidden(name))):
        raise UmbelError("no files there", where=where, fix="check the path or the pattern")
    return {name: names[name] for name in visible}


@functools.cache
def local_root(path: str) -> Path:
    """The folder that names are relative to: what stands before a pattern, or the folder itself."""
    place = Path(path).expanduser().absolute()
    if glob.has_magic(path) and not place.exists():
        return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), place.parts[:-1]))
    return place


def local_path(path: str, name: str) -> Path:
    """Where the file of that name lies among those that ``path`` stands for; nothing is listed."""
    root = local_root(path)
    return root if root.name == name and not root.is_dir() else root / name


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
