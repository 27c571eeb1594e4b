"""Checkpoint folders come and go by one rename each; whatever a crash leaves has a hidden name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from base.files import fsync_dir
from checkpoint.format import MANIFEST, step_name, step_of

STAGING, OLD, TRASH = ".tmp", ".old", ".trash"


def hidden(checkpoints: Path, name: str, suffix: str) -> Path:
    return checkpoints / f".{name}{suffix}"


def staging_folder(checkpoints: Path, step: int) -> Path:
    """Where a save grows before it takes its name; hidden, so nobody reads it."""
    return hidden(checkpoints, step_name(step), STAGING)


def steps(checkpoints: Path) -> dict[int, Path]:
    """Every ``step-*`` folder by step, newest first; says nothing about what is in it."""
    if not checkpoints.is_dir():
        return {}
    found = {step_of(path.name): path for path in checkpoints.iterdir() if path.is_dir()}
    return {step: found[step] for step in sorted((step for step in found if step is not None), reverse=True)}


def install(checkpoints: Path, step: int) -> Path:
    """Give a finished staging folder its name, in place of an older one of the same step.

    Between the two renames the step has no visible folder; :func:`clean` then brings the old one back.
    """
    final, old = checkpoints / step_name(step), hidden(checkpoints, step_name(step), OLD)
    _remove(old)
    if final.exists():
        os.rename(final, old)
    os.rename(staging_folder(checkpoints, step), final)
    fsync_dir(checkpoints)
    _remove(old)
    return final


def delete(folder: Path) -> None:
    """Delete a checkpoint: renamed out of sight first, so that no half of it is ever seen."""
    trash = hidden(folder.parent, folder.name, TRASH)
    _remove(trash)
    if trash.exists():
        return
    os.rename(folder, trash)
    fsync_dir(folder.parent)
    _remove(trash)


def discard(checkpoints: Path, step: int) -> None:
    """Drop an unfinished save (rank 0, when some rank could not write its share)."""
    _remove(staging_folder(checkpoints, step))


def clean(checkpoints: Path) -> None:
    """Remove what a killed process left (rank 0, at start, while nobody saves).

    Goes: staging and trash, and step folders that hold no manifest at all. A folder whose manifest is
    there but damaged or newer stays for a human: no crash makes one, and readers pass it by.
    """
    if not checkpoints.is_dir():
        return
    for path in sorted(checkpoints.glob(".step-*")):
        name, suffix = path.stem.removeprefix("."), path.suffix
        if step_of(name) is None or suffix not in (STAGING, OLD, TRASH):
            continue
        if suffix == OLD and not (checkpoints / name).exists():
            os.rename(path, checkpoints / name)
        else:
            _remove(path)
    for folder in steps(checkpoints).values():
        if not os.path.lexists(folder / MANIFEST) and not folder.is_symlink():
            delete(folder)
    fsync_dir(checkpoints)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        # A network file system keeps files that somebody reads; the next `clean` has them.
        shutil.rmtree(folder, ignore_errors=folder.suffix == TRASH)
