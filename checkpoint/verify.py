"""Is this folder the checkpoint its manifest speaks of? Reads everything, executes nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from checkpoint import manifest as manifests
from checkpoint.format import MANIFEST, Damaged
from checkpoint.fragment import read_fragments
from checkpoint.strict import open_plain

Mode = Literal["full", "sizes"]
MAX_READERS = 8


def verify(folder: Path, mode: Mode = "full", *, run_id: str | None = None) -> None:
    """Check a checkpoint: manifest, names, sizes, headers, and by "full" every byte's sha256.

    Args:
        mode: "sizes" reads no tensor; it is for what this machine itself wrote.
        run_id: refuse the state of any other run.

    Raises:
        Damaged: names the file and what is wrong with it.
        Foreign: of a newer format version, or of another run.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise Damaged("is no folder", where=str(folder))
    manifest = manifests.read(folder, run_id=run_id)
    _check_names(folder, {MANIFEST} | {file["name"] for file in manifest["files"]})
    _each_file(folder, manifest, _check_header)
    if mode == "full":
        _each_file(folder, manifest, _check_sha256)


def _check_names(folder: Path, expected: set[str]) -> None:
    """A file the manifest does not name would be read by other programs, so it is refused."""
    present = set(os.listdir(folder))
    for name in sorted(expected - present):
        raise Damaged("is missing", where=str(folder / name))
    for name in sorted(present - expected):
        raise Damaged("is not in the manifest", where=str(folder / name), fix="move it out of the checkpoint")


def _each_file(
    folder: Path, manifest: Mapping[str, Any], check: Callable[[Path, Mapping[str, Any]], Any]
) -> None:
    # Threads: hashing and reading release the interpreter.
    with ThreadPoolExecutor(min(MAX_READERS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda file: check(folder / file["name"], file), manifest["files"]):
            pass


def _check_header(path: Path, entry: Mapping[str, Any]) -> None:
    with open_plain(path) as file:
        read_fragments(file, entry, str(path))


def _check_sha256(path: Path, entry: Mapping[str, Any]) -> None:
    with open_plain(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry["sha256"]:
        raise Damaged("its content is not what was saved (sha256 differs)", where=str(path))
