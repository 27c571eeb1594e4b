"""How much of a user's or group's quota is used, where the file system's own tool says so."""

from __future__ import annotations

import contextlib
import getpass
import grp
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

SECONDS = 10.0
"""What a tool may take."""

_COLUMNS = 8
"""Of ``lfs quota`` and ``quota`` alike: kilobytes, quota, limit, grace; files, quota, limit, grace."""


def quota_shares(path: Path) -> dict[str, float]:
    """``bytes`` and ``files`` → the largest share of a limit that is used; empty where none is known."""
    with contextlib.suppress(OSError, KeyError):
        return most(_shares(_ask(command)) for command in _commands(path))
    return {}


def most(shares: Iterable[dict[str, float]]) -> dict[str, float]:
    """Name → the largest of its shares."""
    found: dict[str, float] = {}
    for each in shares:
        for name, share in each.items():
            found[name] = max(share, found.get(name, 0.0))
    return found


def _commands(path: Path) -> list[list[str]]:
    """What there is to ask: Lustre's tool where it is installed, or else the kernel's."""
    user, group = getpass.getuser(), grp.getgrgid(os.stat(path).st_gid).gr_name
    if shutil.which("lfs"):
        return [["lfs", "quota", "-q", "-u", user, str(path)], ["lfs", "quota", "-q", "-g", group, str(path)]]
    if shutil.which("quota"):
        mount = next(str(folder) for folder in (path.resolve(), *path.resolve().parents) if folder.is_mount())
        return [["quota", "-wp", "-f", mount], ["quota", "-wp", "-g", group, "-f", mount]]
    return []


def _ask(command: list[str]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False).stdout
    return ""


def _shares(table: str) -> dict[str, float]:
    """Of every line that holds numbers in the columns; a limit of 0 is none."""
    return most(_row(line.split()[-_COLUMNS:]) for line in table.splitlines())


def _row(cells: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    with contextlib.suppress(ValueError, IndexError):
        for name, first in (("bytes", 0), ("files", 4)):
            # A star marks what is over its limit. The soft limit counts where it is the only one.
            used, soft, hard = (int(cell.rstrip("*")) for cell in cells[first : first + 3])
            if limit := hard or soft:
                found[name] = used / limit
    return found
