"""The files that a path stands for: a file, a folder, a glob, on this machine or behind a URL.

Paths are strings here: a source may have 100,000, and pathlib takes ten times as long.
"""

from __future__ import annotations

import functools
import glob
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from base.errors import UmbelError

Listed = dict[str, str]
"""Name, relative to what was asked for, to path; in order of name."""


def list_local(path: str, where: str) -> Listed:
    """The files of a file, folder (hidden ones left out) or glob, sorted, named relative to it.

    Raises:
        UmbelError: nothing is there.
    """
    place = Path(path).expanduser().absolute()
    if place.is_file():
        return {place.name: str(place)}
    found: Iterable[str]
    if place.is_dir():
        found = (os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names)
    elif glob.has_magic(path):
        found = glob.iglob(str(place), recursive=True)
    else:
        raise UmbelError("no such file or folder", where=where, fix="check the path")
    prefix = os.path.join(local_root(path), "")
    names = {file.removeprefix(prefix): file for file in found if os.path.isfile(file)}
    if not (visible := sorted(name for name in names if not is_hidden(name))):
        raise UmbelError("no files there", where=where, fix="check the path or the pattern")
    return {name: names[name] for name in visible}


@functools.cache
def local_root(path: str) -> str:
    """The folder that names are relative to: what stands before a pattern, or the folder itself."""
    place = Path(path).expanduser().absolute()
    if glob.has_magic(path) and not place.exists():
        return str(Path(*itertools.takewhile(lambda part: not glob.has_magic(part), place.parts[:-1])))
    return str(place)


def local_path(path: str, name: str) -> str:
    """Where the file of that name lies among those that ``path`` stands for; nothing is listed."""
    root = local_root(path)
    return root if os.path.basename(root) == name and not os.path.isdir(root) else os.path.join(root, name)


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
