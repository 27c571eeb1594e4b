"""Is this folder the checkpoint its manifest speaks of? Reads everything, executes nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from base.files import CHUNK
from checkpoint import manifest as manifests
from checkpoint.format import DTYPE_BYTES, MANIFEST, Damaged, shown
from checkpoint.fragment import read_fragments
from checkpoint.hold import held
from checkpoint.numbers import first_not_finite
from checkpoint.safetensors import Entry
from checkpoint.strict import open_plain

Mode = Literal["sizes", "full", "finite"]
MAX_READERS = 8


class Verified(NamedTuple):
    """What was found whole. ``bytes``: of all state files; ``hashed``: of those whose content was read."""

    manifest: manifests.Manifest
    digest: str
    files: int
    bytes: int
    hashed: int


def verify(
    folder: Path,
    mode: Mode = "full",
    *,
    run_id: str | None = None,
    part: tuple[int, int] = (0, 1),
    tell: Callable[[int], object] = lambda _: None,
) -> Verified:
    """Check a checkpoint: manifest, names, sizes, headers; by "full" every byte's sha256.

    Memory: the manifest, and a buffer of 1 MiB for each of at most 8 threads.

    Args:
        mode: "sizes" reads no tensor; it is for what this machine itself wrote. "finite" is "full", and no
            float may be NaN or infinite.
        run_id: refuse the state of any other run.
        part: (rank, size) of a job that verifies together. Every rank checks everything but content, and
            the content of about 1/size of the bytes; what all ranks accept is whole.
        tell: called with the number of bytes each time some are hashed, from several threads.

    Raises:
        Damaged: names the file and what is wrong with it.
        Foreign: of a newer format version, or of another run.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise Damaged("is no folder", where=str(folder))
    with held(folder):
        manifest, digest = manifests.read_with_digest(folder, run_id=run_id)
        files = manifest["files"]
        _check_names(folder, {MANIFEST} | {file["name"] for file in files})
        _each_file(folder, files, _check_header)
        mine = [] if mode == "sizes" else share(files, *part)
        _each_file(folder, mine, lambda path, file: _check_content(path, file, mode == "finite", tell))
    return Verified(manifest, digest, len(files), _total(files), _total(mine))


def share(files: Sequence[Mapping[str, Any]], rank: int, size: int) -> list[Mapping[str, Any]]:
    """The files whose content one of ``size`` ranks reads: the largest first, to whoever has least so far."""
    loads = [0] * size
    mine = []
    for file in sorted(files, key=lambda file: (-file["size"], file["name"])):
        reader = loads.index(min(loads))
        loads[reader] += file["size"]
        mine += [file] if reader == rank else []
    return mine


def _total(files: Sequence[Mapping[str, Any]]) -> int:
    return sum(file["size"] for file in files)


def _check_names(folder: Path, expected: set[str]) -> None:
    """A file the manifest does not name would be read by other programs, so it is refused."""
    present = set(os.listdir(folder))
    for name in sorted(expected - present):
        raise Damaged("is missing", where=str(folder / name))
    for name in sorted(present - expected):
        stray = str(folder / shown(name))
        raise Damaged("is not in the manifest", where=stray, fix="move it out of the checkpoint")


def _each_file(
    folder: Path, files: Sequence[Mapping[str, Any]], check: Callable[[Path, Mapping[str, Any]], Any]
) -> None:
    # Threads: hashing and reading release the interpreter.
    with ThreadPoolExecutor(min(MAX_READERS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda file: check(folder / file["name"], file), files):
            pass


def _check_header(path: Path, entry: Mapping[str, Any]) -> None:
    with open_plain(path) as file:
        read_fragments(file, entry, str(path))


def _check_content(path: Path, entry: Mapping[str, Any], finite: bool, tell: Callable[[int], object]) -> None:
    """One pass over a file. Rot is told before NaN: it may be what made it."""
    digest, fault = hashlib.sha256(), ""
    with open_plain(path) as file:
        tensors = read_fragments(file, entry, str(path)) if finite else {}
        for key, position, chunk in _chunks(file, tensors):
            digest.update(chunk.data)
            tell(len(chunk))
            bad = first_not_finite(chunk, tensors[key].dtype) if key and not fault else None
            if bad is not None:
                element = (position - tensors[key].begin) // DTYPE_BYTES[tensors[key].dtype] + bad
                fault = (
                    f"'{shown(key)}' holds NaN or infinity, first at element {element} of this file's part"
                )
    if digest.hexdigest() != entry["sha256"]:
        raise Damaged("its content is not what was saved (sha256 differs)", where=str(path))
    if fault:
        raise Damaged(fault, where=str(path))


def _chunks(file: BufferedReader, tensors: Mapping[str, Entry]) -> Iterator[tuple[str, int, np.ndarray]]:
    """A file from first byte to last: (tensor or "", position, bytes); the bytes' memory is used again."""
    buffer = np.empty(CHUNK, np.uint8)
    spans = sorted((entry.begin, entry.end, key) for key, entry in tensors.items())
    start = spans[0][0] if spans else None
    file.seek(0)
    for position, stop, key in [(0, start, ""), *spans]:
        while stop is None or position < stop:
            count = file.readinto(buffer[: None if stop is None else stop - position].data)
            if not count:
                return
            yield key, position, buffer[:count]
            position += count
