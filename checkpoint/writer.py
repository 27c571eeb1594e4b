"""Saving: every rank streams what it owns into a hidden folder; rank 0 makes it a checkpoint.

No rank sees another's state, and nothing has the name of a checkpoint before all of it is on disk.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from base.errors import RunFailed, UmbelError
from base.files import fsync_dir, human_bytes, write_text
from checkpoint import manifest as manifests
from checkpoint.folders import clean, discard, install, staging_folder
from checkpoint.format import (
    FROZEN,
    MANIFEST,
    MAX_MANIFEST,
    WHOLE_KINDS,
    Damaged,
    share_name,
    split_key,
    state_file_name,
)
from checkpoint.fragment import Fragment, check_fragment, write_fragments
from checkpoint.strict import compact_json, parse_json, read_plain

__all__ = ["Fragment", "clean", "commit", "discard", "write_share"]


def write_share(
    checkpoints: Path,
    step: int,
    rank: int,
    world_size: int,
    fragments: Iterable[Fragment],
    parameters: Mapping[str, Sequence[int]],
) -> None:
    """Write and fsync what one rank owns of the state, then a note that it is there.

    Args:
        fragments: may be empty; several ranges of one tensor go to further files.
        parameters: shape of every trained parameter, the same on all ranks.

    Raises:
        UmbelError: the disk is full or unwritable; this rank's files are removed again.
        ValueError: a fragment that is not in the contract of :class:`Fragment`.
    """
    parts = _parts([check_fragment(fragment, parameters) for fragment in fragments])
    needed = sum(fragment.nbytes for part in parts for fragment in part)
    staging = staging_folder(checkpoints, step)
    with _disk_faults(checkpoints, needed):
        staging.mkdir(parents=True, exist_ok=True)
        _note(staging, rank, world_size).unlink(missing_ok=True)
        try:
            _check_free(checkpoints, needed)
            names = [state_file_name(rank, world_size, part + 1) for part in range(len(parts))]
            files = [write_fragments(staging / name, part) for name, part in zip(names, parts, strict=True)]
            shapes = {name: list(shape) for name, shape in parameters.items()}
            note = compact_json({"parameters": shapes, "files": files})
            write_text(_note(staging, rank, world_size), note)
        except BaseException:
            _withdraw(staging, rank, world_size)
            raise


def commit(checkpoints: Path, step: int, world_size: int, facts: Mapping[str, Any]) -> Path:
    """Make a checkpoint of the shares that all ranks wrote (rank 0, after a barrier).

    Args:
        facts: the keys of ``checkpoint.schema.FACTS``.

    Returns:
        ``checkpoints/step-<step>``; one of the same name that was there before is replaced.

    Raises:
        RunFailed: a rank's share is missing, the shares are not exactly the state, or a fact is wrong.
        UmbelError: the disk is full or unwritable.
        In every case the unfinished save is removed and older checkpoints stay as they are.
    """
    staging = staging_folder(checkpoints, step)
    try:
        with _disk_faults(checkpoints):
            manifest = _gather(staging, step, world_size, facts)
            _finish(staging, manifest)
    except BaseException:
        with suppress(OSError):
            discard(checkpoints, step)
        raise
    with _disk_faults(checkpoints):
        return install(checkpoints, step)


def _parts(fragments: Sequence[Fragment]) -> list[list[Fragment]]:
    """Fragments file by file: a file holds at most one range of a tensor, for its key is the tensor's."""
    parts: list[dict[str, Fragment]] = [{}]
    for fragment in fragments:
        if not fragment.nbytes and fragment.kind not in WHOLE_KINDS:
            continue
        home = next((part for part in parts if fragment.key not in part), None)
        if home is None:
            parts.append(home := {})
        home[fragment.key] = fragment
    return [list(part.values()) for part in parts]


def _gather(staging: Path, step: int, world_size: int, facts: Mapping[str, Any]) -> manifests.Manifest:
    """The manifest of all shares, checked."""
    shares = [_read_note(staging, rank, world_size) for rank in range(world_size)]
    parameters = shares[0]["parameters"]
    try:
        if any(share["parameters"] != parameters for share in shares):
            raise ValueError("the ranks speak of different parameters")
        if facts.get("step") != step or facts.get("topology", {}).get("world_size") != world_size:
            raise ValueError(f"the facts are not of step {step} by {world_size} ranks")
        files = [file for share in shares for file in share["files"]]
        return manifests.build(facts, parameters | _frozen_shapes(files), files)
    except (TypeError, ValueError) as error:
        raise RunFailed(f"the state to save is not whole: {error}", where=str(staging)) from error


def _finish(staging: Path, manifest: manifests.Manifest) -> None:
    """Leave exactly the manifest and its files in the folder, all of it on the disk."""
    manifests.write(staging, manifest)
    manifests.read(staging)  # Never leave behind what readers would refuse.
    wanted = {MANIFEST} | {file["name"] for file in manifest["files"]}
    for path in staging.iterdir():
        if path.name not in wanted:
            path.unlink()
    for file in manifest["files"]:
        if (staging / file["name"]).stat().st_size != file["size"]:
            raise RunFailed("has another size than its rank wrote", where=str(staging / file["name"]))
    fsync_dir(staging)


def _frozen_shapes(files: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    found = ((split_key(key), one["shape"]) for file in files for key, one in file["fragments"].items())
    return {name: shape for (name, kind), shape in found if kind == FROZEN}


def _note(staging: Path, rank: int, world_size: int) -> Path:
    return staging / f"share-{share_name(rank, world_size)}.json"


def _read_note(staging: Path, rank: int, world_size: int) -> Any:
    note = _note(staging, rank, world_size)
    try:
        return parse_json(read_plain(note, MAX_MANIFEST), str(note))
    except Damaged as error:
        raise RunFailed(f"rank {rank} of {world_size} left no share", where=str(staging)) from error


def _withdraw(staging: Path, rank: int, world_size: int) -> None:
    """Remove this rank's files, and the folder with the last of them; the other ranks' stay."""
    with suppress(OSError):
        for path in staging.glob(f"*{share_name(rank, world_size)}*"):
            path.unlink(missing_ok=True)
        staging.rmdir()


def _check_free(checkpoints: Path, needed: int) -> None:
    free = shutil.disk_usage(checkpoints).free
    if needed > free:
        raise _disk_full(checkpoints, needed, free)


@contextmanager
def _disk_faults(checkpoints: Path, needed: int = 0) -> Iterator[None]:
    """Tell a fault of the disk in one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(checkpoints).free
            raise _disk_full(checkpoints, needed, free) from error
        if error.errno == errno.EFBIG:
            raise _file_too_large(checkpoints, needed) from error
        raise UmbelError(
            f"no checkpoint could be written ({error.strerror})",
            where=str(error.filename or checkpoints),
            fix="older checkpoints are as they were",
        ) from error


def _file_too_large(checkpoints: Path, needed: int) -> UmbelError:
    return UmbelError(
        f"no file may become that large here: one rank's share of the checkpoint needs {human_bytes(needed)}",
        where=str(checkpoints),
        fix="raise the limit on file sizes (ulimit -f), or write to another file system;"
        " older checkpoints are as they were",
    )


def _disk_full(checkpoints: Path, needed: int, free: int) -> UmbelError:
    return UmbelError(
        f"the disk is full: one rank's share of the checkpoint needs {human_bytes(needed)},"
        f" {human_bytes(free)} are free",
        where=str(checkpoints),
        fix="free some space or lower how many checkpoints are kept; older checkpoints are as they were",
    )
