"""The note that each rank leaves in the staging folder: its share is on the disk, or why it is not.

Ranks finish at different times and on different machines; the file system that takes the checkpoint is what
they have in common.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from base.errors import RunFailed, UmbelError
from base.files import write_text
from checkpoint.folders import staging_folder
from checkpoint.format import MAX_MANIFEST, Damaged, share_name
from checkpoint.strict import compact_json, parse_json, read_plain

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.2
"""Seconds between two looks for other ranks' notes."""

Wait = Callable[[], None]


def note_path(staging: Path, rank: int, world_size: int) -> Path:
    return staging / f"share-{share_name(rank, world_size)}.json"


def leave_note(
    staging: Path,
    rank: int,
    world_size: int,
    parameters: Mapping[str, Sequence[int]],
    files: Sequence[Mapping[str, Any]],
) -> None:
    """Say that a rank's files are on the disk.

    Args:
        files: what :func:`checkpoint.fragment.write_fragments` returned.
    """
    shapes = {name: list(shape) for name, shape in parameters.items()}
    write_text(note_path(staging, rank, world_size), compact_json({"parameters": shapes, "files": files}))


def fail_share(
    checkpoints: Path, step: int, save_id: str, rank: int, world_size: int, error: str, exit_code: int = 1
) -> None:
    """Say that a rank's share will not come, so that rank 0 gives the save up and does not wait for ever.

    Args:
        error: one line, which rank 0 then raises, with ``exit_code``.

    Raises:
        OSError: not even that can be written.
    """
    staging = staging_folder(checkpoints, step, save_id)
    note = compact_json({"error": error, "exit_code": exit_code})
    write_text(note_path(staging, rank, world_size), note)


def patience(seconds: float | None = None) -> Wait:
    """What :func:`gather_notes` calls between two looks: it sleeps, longer each time.

    Raises:
        RunFailed: when called after so many ``seconds``; never if None.
    """
    pause, began = FIRST_PAUSE, time.monotonic()

    def wait() -> None:
        nonlocal pause
        if seconds is not None and time.monotonic() - began > seconds:
            raise RunFailed(f"the shares of other ranks did not come within {seconds:g} s")
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_PAUSE)

    return wait


def gather_notes(staging: Path, world_size: int, wait: Wait | None) -> list[Any]:
    """The notes of all ranks, by rank.

    Args:
        wait: called while some are missing; may raise. None: all have been written.

    Raises:
        UmbelError: of a rank that failed, as it said itself.
        RunFailed: a note is missing, or no note.
        OSError: the disk cannot be read, or written any more.
    """
    notes: dict[int, Any] = {}
    while True:
        present = set(os.listdir(staging))  # one request a look, however many ranks
        for rank in range(world_size):
            if rank not in notes and note_path(staging, rank, world_size).name in present:
                notes[rank] = _read(note_path(staging, rank, world_size))
        if len(notes) == world_size:
            return [notes[rank] for rank in range(world_size)]
        if wait is None:
            missing = min(set(range(world_size)) - notes.keys())
            raise RunFailed(f"rank {missing} of {world_size} left no share", where=str(staging))
        if not os.access(staging, os.W_OK):  # no failed rank could say so
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(staging))
        wait()


def _read(note: Path) -> Any:
    try:
        content = parse_json(read_plain(note, MAX_MANIFEST), str(note))
    except Damaged as error:
        raise RunFailed(str(error)) from error
    if "error" in content:
        failure = UmbelError(content["error"])
        failure.exit_code = content["exit_code"]
        raise failure
    return content
