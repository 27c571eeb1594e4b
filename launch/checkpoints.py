"""Finding the checkpoint that a user means."""

from __future__ import annotations

from pathlib import Path

from base.errors import UmbelError
from checkpoint.folders import steps
from checkpoint.format import MANIFEST
from record.folder import RunFolder


def find_checkpoint(place: str, step: int | None) -> Path:
    """A checkpoint folder given as such, or a run's: the newest, or that of a step.

    Raises:
        UmbelError: there is none; says which steps there are.
    """
    if (Path(place) / MANIFEST).is_file() and step is None:
        return Path(place)
    folder = RunFolder.find(place)
    found = steps(folder.checkpoints)
    if not found:
        raise UmbelError("has no checkpoint yet", where=folder.name, fix=f"umbel status {folder.handle}")
    if step is None:
        return found[max(found)]
    if step not in found:
        there = ", ".join(map(str, sorted(found)))
        raise UmbelError(f"has no checkpoint of step {step}", where=folder.name, fix=f"there are: {there}")
    return found[step]
