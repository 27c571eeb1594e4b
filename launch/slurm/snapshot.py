"""The code of a run as it is at its submission: what starts hours later must not be what was edited since."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from base.files import fsync_dir
from launch.processes import HOME
from record.folder import RunFolder

ROOMS = ("base", "configs", "record", "data", "checkpoint", "train", "hub", "launch")
_ENDINGS = (".py", ".yaml")


def take_snapshot(folder: RunFolder, home: Path = HOME) -> Path:
    """Copy Umbel's code to ``job/code-<hash>/``, unless this very code lies there; returns that folder.

    What a killed copy left behind is removed, and one that was changed is made anew.

    Raises:
        OSError: the disk is full, or a file cannot be read.
    """
    files = dict(_files(home))
    target = folder.job / f"code-{code_hash(files)[:12]}"
    for leftover in folder.job.glob(".code-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    if target.is_dir():
        if _same(target, files):
            return target
        shutil.rmtree(target)
    temporary = folder.job / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        _copy(files, temporary)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_dir(folder.job)
    return target


def snapshot_name(home: Path = HOME) -> str:
    """What the snapshot's folder would be called."""
    return f"code-{code_hash(dict(_files(home)))[:12]}"


def code_hash(files: dict[str, bytes]) -> str:
    """Hexadecimal sha256 of names and contents, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _files(home: Path) -> Iterator[tuple[str, bytes]]:
    yield "umbel.py", (home / "umbel.py").read_bytes()
    for room in ROOMS:
        for file in sorted((home / room).rglob("*")):
            if file.suffix in _ENDINGS and file.is_file():
                yield file.relative_to(home).as_posix(), file.read_bytes()


def _copy(files: dict[str, bytes], target: Path) -> None:
    for name, content in files.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _same(target: Path, files: dict[str, bytes]) -> bool:
    """Whether it holds these files and no others: a power cut may leave empty ones, and people edit."""
    try:
        return dict(_files(target)) == files
    except OSError:
        return False
