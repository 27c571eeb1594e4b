"""Going back to an earlier checkpoint: one event, and what follows from it."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from base.files import fsync_dir
from configs.compose import load, save
from record.events import read_events, record_event
from record.folder import RunFolder

Event = dict[str, Any]
SKIP = "data.skip"


def rollbacks(events: Sequence[Event]) -> list[Event]:
    """Every rollback of a run, oldest first."""
    return [event for event in events if event["event"] == "rollback"]


def aside_folder(folder: RunFolder, number: int) -> Path:
    """Where a run's ``number``-th rollback, from 1, puts the checkpoints beyond its step."""
    return folder.checkpoints / f"rolled-back-{number:04d}"


def finish_rollback(folder: RunFolder) -> None:
    """Do what the newest rollback asks for and is not done yet; harmless at any other time.

    The event is the commit point: whatever a kill leaves undone, the next call does. Call it in one process,
    while nobody else works on the run, before ``run.yaml`` is read or a checkpoint is looked for.

    Raises:
        UmbelError: ``run.yaml`` cannot be read.
        OSError: the disk is full or cannot be written; the next call goes on.
    """
    events = read_events(folder)
    asked = rollbacks(events)
    if not asked:
        return
    rollback, since = asked[-1], _since_rollback(events)
    if any(event["event"] == "start" for event in since):
        return  # It was finished before that start; a checkpoint of one of these steps is a new one.
    _set_aside(folder.checkpoints, rollback["set_aside"], aside_folder(folder, len(asked)))
    changed = {key for event in since if event["event"] == "change" for key in event["keys"]}
    if "keys" in rollback and SKIP not in changed:
        _skip(folder, rollback["keys"][SKIP][1])
        record_event(folder, "change", keys=rollback["keys"])


def _since_rollback(events: Sequence[Event]) -> Sequence[Event]:
    """What came after the newest rollback."""
    index = max(number for number, event in enumerate(events) if event["event"] == "rollback")
    return events[index + 1 :]


def _set_aside(checkpoints: Path, names: Collection[str], aside: Path) -> None:
    # Newest first: those that are left are those up to some step, wherever a kill falls.
    for path in sorted(checkpoints.glob("step-*"), reverse=True):
        if path.name in names:
            aside.mkdir(exist_ok=True)
            os.rename(path, aside / path.name)
    if aside.is_dir():
        fsync_dir(aside)
        fsync_dir(checkpoints)


def _skip(folder: RunFolder, ranges: list[list[int]]) -> None:
    config = load(folder.run_yaml)
    save(replace(config, data=replace(config.data, skip=ranges)), folder.run_yaml)
