"""Finding the checkpoint that a user means."""

from __future__ import annotations

import re
from pathlib import Path

from base.errors import UmbelError
from checkpoint.folders import steps
from checkpoint.format import MANIFEST, step_of
from checkpoint.pickles import refuse_pickles
from record.folder import RunFolder


def find_checkpoint(place: str, step: int | None = None) -> Path:
    """The checkpoint that is meant: its folder, ``RUN@STEP``, or a run and its newest or that of ``step``.

    Raises:
        UmbelError: there is none, and which steps there are; or what is there holds pickles.
    """
    path = Path(place)
    if step is None and _is_checkpoint(path):
        return path
    run, at = _split(place)
    found = find_checkpoints(run)
    wanted = at if step is None else step
    if wanted is None:
        return found[max(found)]
    if wanted not in found:
        there = ", ".join(map(str, sorted(found)))
        raise UmbelError(f"has no checkpoint of step {wanted}", where=run, fix=f"there are: {there}")
    return found[wanted]


def find_checkpoints(run: str) -> dict[int, Path]:
    """Every checkpoint of a run by step, newest first; a folder of checkpoints will do for a run.

    Raises:
        UmbelError: no such run, or it has none; or what is there holds pickles.
    """
    if found := steps(Path(run)):
        return found
    if Path(run).exists() and not (Path(run) / "run.yaml").exists():
        refuse_pickles(Path(run))
        fix = "'umbel checkpoint import' reads those of DeepSpeed, Accelerate and Transformers"
        raise UmbelError("is no run, and holds no checkpoint of Umbel's", where=run, fix=fix)
    folder = RunFolder.find(run)
    if found := steps(folder.checkpoints):
        return found
    raise UmbelError("has no checkpoint yet", where=folder.name, fix=f"umbel status {folder.handle}")


def _is_checkpoint(path: Path) -> bool:
    """One whose manifest is missing counts by its name: that is what is to be said of it."""
    return path.is_dir() and ((path / MANIFEST).is_file() or step_of(path.name) is not None)


def _split(place: str) -> tuple[str, int | None]:
    """("demo", 100) of ``demo@100``; a folder of such a name is that folder."""
    match = re.fullmatch(r"(.+)@(\d{1,18})", place, re.ASCII)
    return (match[1], int(match[2])) if match and not Path(place).exists() else (place, None)
