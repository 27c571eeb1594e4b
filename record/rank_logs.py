"""What each rank printed: a file for each, named after its node too where there is more than one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from record.folder import RunFolder
from record.heartbeats import node_name

_ENOUGH = 1 << 14
"""Bytes that hold the last lines."""

_NAME = re.compile(r"rank-(\d+)(?:\.(.+))?\.log")


def take_log(folder: RunFolder, attempt: int, rank: int) -> Path:
    """``logs/attempt-0001/rank-00003.log``, or, where its Slurm step has several nodes, with this one's name,
    ``rank-00003.node2.log``. What srun has written there already, before the rank knew itself, is kept."""
    plain = folder.rank_log(attempt, rank)
    if os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return plain
    named = plain.with_name(f"{plain.stem}.{node_name()}.log")
    if plain.exists() and not named.exists():
        os.rename(plain, named)
    return named


def rank_logs(folder: RunFolder, attempt: int) -> dict[int, Path]:
    """The logs that the ranks of an attempt wrote, by rank; of several of a rank the newest."""
    place, found = folder.rank_log(attempt, 0).parent, dict[int, Path]()
    for file in sorted(place.glob("rank-*.log"), key=lambda file: file.stat().st_mtime):
        if match := _NAME.fullmatch(file.name):
            found[int(match[1])] = file
    return dict(sorted(found.items()))


def node_of(folder: RunFolder, attempt: int, rank: int) -> str | None:
    """The node that a rank's log is named after."""
    log = rank_logs(folder, attempt).get(rank)
    match = _NAME.fullmatch(log.name) if log else None
    return match[2] if match else None


def last_lines(folder: RunFolder, attempt: int, rank: int, count: int) -> str:
    """The end of what a rank printed: its traceback, where it raised. Empty where it printed nothing."""
    log = rank_logs(folder, attempt).get(rank)
    if log is None:
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _ENOUGH))
        return "\n".join(file.read().decode(errors="replace").rstrip().splitlines()[-count:])
