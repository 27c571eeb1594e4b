"""Saving: every rank streams what it owns into a hidden folder; rank 0 makes it a checkpoint.

No rank sees another's state, and nothing has the name of a checkpoint before all of it is on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from base.errors import RunFailed
from base.files import fsync_dir
from checkpoint import manifest as manifests
from checkpoint.disk import Need, check_room, disk_faults
from checkpoint.folders import clean, discard, discard_others, install, staging_folder
from checkpoint.format import BUFFER, MANIFEST, share_name, state_file_name
from checkpoint.fragment import Fragment, check_fragment, write_fragments
from checkpoint.notes import Wait, fail_share, gather_notes, leave_note, note_path, patience

MANIFEST_NEED = Need(bytes=1, files=2, whole=0)

__all__ = ["Fragment", "clean", "commit", "discard", "fail_share", "patience", "write_share"]


def write_share(
    checkpoints: Path,
    step: int,
    save_id: str,
    rank: int,
    world_size: int,
    fragments: Iterable[Fragment],
    parameters: Mapping[str, Sequence[int]],
    total_bytes: int | None = None,
) -> int:
    """Write and fsync what one rank owns of the state, then a note that it is there.

    A run saves one step at a time: rank 0 removes what earlier saves left unfinished.

    Args:
        save_id: hexadecimal digits, the same on all ranks and of this save alone.
        fragments: may be empty; several ranges of one tensor go to further files. Bytes that are given by no
            function must stay as they are until this returns.
        parameters: shape of every parameter that is stored, trained or frozen, the same on all ranks.
        total_bytes: of all ranks' fragments, for which rank 0 looks whether there is room.

    Returns:
        Bytes of this rank's files.

    Raises:
        UmbelError: the disk is full or unwritable; this rank's files are removed again.
        ValueError: a fragment that is not in the contract of :class:`Fragment`.
    """
    parts = _parts([check_fragment(fragment, parameters) for fragment in fragments])
    staging = staging_folder(checkpoints, step, save_id)
    need = _need(parts, rank, world_size, total_bytes)
    with disk_faults(checkpoints, need):
        checkpoints.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            discard_others(checkpoints, step, save_id)
        check_room(checkpoints, need, staging if rank == 0 else None)
        staging.mkdir(exist_ok=True)
        note_path(staging, rank, world_size).unlink(missing_ok=True)
        try:
            names = [state_file_name(rank, world_size, part + 1) for part in range(len(parts))]
            files = [write_fragments(staging / name, part) for name, part in zip(names, parts, strict=True)]
            fsync_dir(staging)  # before the note that speaks of them; and rank 0 may have removed it all
            leave_note(staging, rank, world_size, parameters, files)
        except BaseException as error:
            _withdraw(staging, rank, world_size)
            if isinstance(error, FileNotFoundError) and not staging.exists():
                raise RunFailed("rank 0 gave this save up", where=str(checkpoints)) from error
            raise
    return sum(file["size"] for file in files)


def commit(
    checkpoints: Path,
    step: int,
    save_id: str,
    world_size: int,
    facts: Mapping[str, Any],
    *,
    wait: Wait | None = None,
) -> Path:
    """Make a checkpoint of the shares that all ranks wrote (rank 0).

    Args:
        facts: the keys of ``checkpoint.schema.FACTS``.
        wait: called between two looks for the notes of other ranks, as :func:`patience` makes one; it ends
            the waiting by raising. None: all ranks are done, as after a barrier.

    Returns:
        ``checkpoints/step-<step>``; one of the same name that was there before is replaced.

    Raises:
        RunFailed: a rank's share is missing, the shares are not exactly the state, or a fact is wrong.
        UmbelError: the disk is full or unwritable; or what a rank that failed says.
        In every case the unfinished save is removed and older checkpoints stay as they are.
    """
    staging = staging_folder(checkpoints, step, save_id)
    try:
        with disk_faults(checkpoints, MANIFEST_NEED):
            manifest = _manifest(gather_notes(staging, world_size, wait), step, world_size, facts, staging)
            _finish(staging, manifest)
            return install(checkpoints, step, save_id)
    except BaseException:
        with suppress(OSError):
            discard(checkpoints, step, save_id)
        raise


def _parts(fragments: Sequence[Fragment]) -> list[list[Fragment]]:
    """Fragments file by file: a file holds at most one range of a tensor, for its key is the tensor's."""
    parts: list[dict[str, Fragment]] = [{}]
    for fragment in fragments:
        if not fragment.nbytes and fragment.kind != BUFFER:
            continue
        home = next((part for part in parts if fragment.key not in part), None)
        if home is None:
            parts.append(home := {})
        home[fragment.key] = fragment
    return [list(part.values()) for part in parts]


def _need(parts: Sequence[Sequence[Fragment]], rank: int, world_size: int, total_bytes: int | None) -> Need:
    """A rank's own share; on rank 0 everybody's, for they share the file system as a rule."""
    own = sum(fragment.nbytes for part in parts for fragment in part)
    whole = max(own, total_bytes or 0)
    if rank == 0:
        return Need(whole, 2 * world_size + len(parts) + 2, whole)
    return Need(own, len(parts) + 2, whole)


def _manifest(
    shares: Sequence[Any], step: int, world_size: int, facts: Mapping[str, Any], staging: Path
) -> manifests.Manifest:
    """The manifest of all shares, checked."""
    parameters = shares[0]["parameters"]
    try:
        if any(share["parameters"] != parameters for share in shares):
            raise ValueError("the ranks speak of different parameters")
        if facts.get("step") != step or facts.get("topology", {}).get("world_size") != world_size:
            raise ValueError(f"the facts are not of step {step} by {world_size} ranks")
        files = [file for share in shares for file in share["files"]]
        return manifests.build(facts, parameters, files)
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


def _withdraw(staging: Path, rank: int, world_size: int) -> None:
    """Remove this rank's files; on rank 0 the folder, too, if they were the last ones."""
    with suppress(OSError):
        for path in staging.glob(f"*{share_name(rank, world_size)}*"):
            path.unlink(missing_ok=True)
        if rank == 0:
            staging.rmdir()
