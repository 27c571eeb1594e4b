"""Checkpoint folders come and go by one rename each; whatever a crash leaves has a hidden name."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from base.files import fsync_dir
from checkpoint.format import MANIFEST, step_name, step_of

STAGING, OLD, TRASH = ".tmp", ".old", ".trash"

_HIDDEN = re.compile(r"\.(step-[0-9]+)(?:\.[0-9a-f]+)?(\.tmp|\.old|\.trash)")


def hidden(checkpoints: Path, name: str, suffix: str) -> Path:
    return checkpoints / f".{name}{suffix}"


def staging_folder(checkpoints: Path, step: int, save_id: str) -> Path:
    """Where a save grows before it takes its name; hidden, so nobody reads it."""
    return hidden(checkpoints, step_name(step), f".{save_id}{STAGING}")


def steps(checkpoints: Path) -> dict[int, Path]:
    """Every ``step-*`` folder by step, newest first; says nothing about what is in it."""
    if not checkpoints.is_dir():
        return {}
    found = {step_of(path.name): path for path in checkpoints.iterdir() if path.is_dir()}
    return {step: found[step] for step in sorted((step for step in found if step is not None), reverse=True)}


def install(checkpoints: Path, step: int, save_id: str) -> Path:
    """Give a finished staging folder its name, in place of an older one of the same step.

    Killed between the two renames, it leaves no visible folder of the step; :func:`clean` brings the old
    one back.
    """
    final, old = checkpoints / step_name(step), hidden(checkpoints, step_name(step), OLD)
    _remove(old)
    if final.exists():
        os.rename(final, old)
    try:
        os.rename(staging_folder(checkpoints, step, save_id), final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
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


def discard(checkpoints: Path, step: int, save_id: str) -> None:
    """Drop an unfinished save (rank 0, when some rank could not write its share)."""
    _remove(staging_folder(checkpoints, step, save_id))


def discard_others(checkpoints: Path, step: int, save_id: str) -> None:
    """Drop what failed saves left (rank 0, when a save begins: no rank is at work on any other)."""
    mine = staging_folder(checkpoints, step, save_id)
    for path, _, suffix in _hidden_folders(checkpoints):
        if suffix == STAGING and path != mine:
            _remove(path)


def clean(checkpoints: Path) -> None:
    """Remove what a killed process left (rank 0, at start, while nobody saves).

    Goes: staging and trash, and step folders that hold no manifest at all. A folder whose manifest is
    there but damaged or newer stays for a human: no crash makes one, and readers pass it by.
    """
    if not checkpoints.is_dir():
        return
    for path, name, suffix in _hidden_folders(checkpoints):
        if suffix == OLD and not (checkpoints / name).exists():
            os.rename(path, checkpoints / name)
        else:
            _remove(path)
    for folder in steps(checkpoints).values():
        if not os.path.lexists(folder / MANIFEST) and not folder.is_symlink():
            delete(folder)
    fsync_dir(checkpoints)


def _hidden_folders(checkpoints: Path) -> list[tuple[Path, str, str]]:
    """What this file has hidden: path, the name it stands for, suffix."""
    matches = [(path, _HIDDEN.fullmatch(path.name)) for path in sorted(checkpoints.glob(".step-*"))]
    return [(path, match[1], match[2]) for path, match in matches if match and step_of(match[1]) is not None]


def _remove(folder: Path) -> None:
    """Remove a folder and what is in it, if it is there; a symbolic link goes alone."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        # A network file system keeps files that somebody reads, and a rank of another node may be about to
        # die. Nobody looks for these names again; the next `clean` has them.
        shutil.rmtree(folder, ignore_errors=folder.suffix in (STAGING, TRASH))
