"""Is there room for a checkpoint, and what to say when there is not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from base.errors import UmbelError
from base.files import human_bytes
from checkpoint.folders import steps

NAMED = 5
"""Checkpoints that a message names."""

LEFT_BEHIND = "rolled-back-*"
"""Folders beside the checkpoints, to which a rollback moved those that it undid."""

UNTOUCHED = "older checkpoints are as they were"


class Need(NamedTuple):
    """What is about to be written: bytes and files. ``whole``: bytes of all ranks; 0: all but the manifest
    is there."""

    bytes: int
    files: int
    whole: int

    @property
    def told(self) -> str:
        return f"the checkpoint needs {human_bytes(self.whole)}" if self.whole else "its manifest is missing"


def check_room(checkpoints: Path, need: Need, staging: Path | None = None) -> None:
    """Refuse a save that will not fit.

    Args:
        staging: where a part of ``need`` may lie already, written by other ranks.

    Raises:
        UmbelError: too few bytes, or inodes, are free; names the checkpoints that could go.
    """
    disk = os.statvfs(checkpoints)  # before looking at what lies there, which grows
    sizes = _sizes(staging) if staging else []
    free = disk.f_bavail * disk.f_frsize
    if need.bytes > free + sum(sizes):
        what = f"the disk is full: {need.told}, {human_bytes(free)} are free"
        raise UmbelError(what, where=str(checkpoints), fix=_what_to_free(checkpoints))
    if _lacks_inodes(disk, need.files - len(sizes)):
        raise _no_inodes(checkpoints, need, disk.f_favail)


@contextmanager
def disk_faults(checkpoints: Path, need: Need) -> Iterator[None]:
    """Tell a fault of the disk in one line.

    Raises:
        UmbelError: for any OSError within.
    """
    try:
        yield
    except OSError as error:
        raise _told(error, checkpoints, need) from error


def _told(error: OSError, checkpoints: Path, need: Need) -> UmbelError:
    where = str(checkpoints)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        disk = os.statvfs(checkpoints)
        if _lacks_inodes(disk, need.files):
            return _no_inodes(checkpoints, need, disk.f_favail)
        full = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        free = human_bytes(disk.f_bavail * disk.f_frsize)
        what = f"{full}, found while writing: {need.told}, {free} are free without it"
        return UmbelError(what, where=where, fix=_what_to_free(checkpoints))
    if error.errno == errno.EFBIG:
        return UmbelError(
            f"no file may become that large here: {need.told}",
            where=where,
            fix=f"raise the limit on file sizes (ulimit -f), or write to another file system; {UNTOUCHED}",
        )
    what = f"no checkpoint could be written ({error.strerror})"
    return UmbelError(what, where=str(error.filename or where), fix=UNTOUCHED)


def _lacks_inodes(disk: os.statvfs_result, files: int) -> bool:
    """A file system that makes inodes as it needs them counts none."""
    return disk.f_files > 0 and files > disk.f_favail


def _no_inodes(checkpoints: Path, need: Need, free: int) -> UmbelError:
    what = f"the disk is out of inodes: the checkpoint needs {need.files}, {free} are free"
    return UmbelError(what, where=str(checkpoints), fix=_what_to_free(checkpoints))


def spare_folders(checkpoints: Path) -> list[Path]:
    """What a run can do without: what rollbacks left, then all checkpoints but the newest, oldest first."""
    return [*sorted(checkpoints.glob(LEFT_BEHIND)), *sorted(steps(checkpoints).values())[:-1]]


def _what_to_free(checkpoints: Path) -> str:
    spare = spare_folders(checkpoints)
    named = [f"{folder.name} ({human_bytes(sum(_sizes(folder)))})" for folder in spare[:NAMED]]
    if len(spare) > NAMED:
        named.append(f"{len(spare) - NAMED} newer ones")
    which = f", as {', '.join(named)}," if named else ""
    return f"free some space{which} or lower checkpoint.keep_last; {UNTOUCHED}"


def _sizes(folder: Path) -> list[int]:
    sizes: list[int] = []
    with suppress(OSError):  # it may just be going, or not be there yet
        sizes.extend(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return sizes
