"""Where several runs stand: what Slurm says of them, asked once for all, and their records."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from base.errors import UmbelError
from launch.goodput import Goodput, goodput
from launch.status import LIVE, RunStatus, age, status_of
from record.events import latest, read_events
from record.folder import RunFolder
from record.jsonl import read_lines
from record.metrics import KEYS
from record.state import run_state

if TYPE_CHECKING:
    from launch.slurm.standing import Standing

Say = Callable[[str], None]


def _keep_quiet(_: str) -> None: ...


LATELY_SECONDS = 3600.0

_OVER = ("failed", "stopped", "rolled back")


def statuses(folders: Iterable[RunFolder], say: Say = _keep_quiet) -> list[RunStatus]:
    """Where runs stand. One that cannot be read, or a Slurm that does not answer, hides no other."""
    listed = list(folders)
    known = ask_slurm(listed, say)
    return [status_or_fault(folder, known.get(folder)) for folder in listed]


def one_status(folder: RunFolder, say: Say = _keep_quiet) -> RunStatus:
    """All that can be told of one run: with its place in the queue, and where its time went.

    Raises:
        UmbelError: its files cannot be read.
    """
    found = status_of(folder, standing=ask_slurm([folder], say, closely=True).get(folder))
    return replace(found, goodput=goodput_of(folder, found.state))


def ask_slurm(
    folders: Iterable[RunFolder], say: Say = _keep_quiet, *, closely: bool = False
) -> dict[RunFolder, Standing]:
    """What Slurm says of those that it may know and that are not over by their own records.

    Args:
        say: told of a Slurm that does not answer.
        closely: ask for the place in the queue, too.
    """
    from launch.slurm.standing import standings

    events: dict[RunFolder, Sequence[dict[str, Any]]] = {}
    for folder in folders:
        with contextlib.suppress(UmbelError):
            each = read_events(folder)
            if is_open(folder, each):
                events[folder] = each
    try:
        return standings(events, closely=closely)
    except UmbelError as error:
        say(f"what Slurm knows is left out: {error}")
        return {}


def is_open(folder: RunFolder, events: Sequence[dict[str, Any]]) -> bool:
    """Whether Slurm may know more of a run than its records: one that nobody ended in order, or that ended
    lately and may be on its way back."""
    state = run_state(folder, list(events))
    if state in ("new", "finished"):
        return False
    ending = latest(events, "stopped", "failed")
    by_signal = ending is not None and str(ending.get("reason", "")).startswith("SIG")
    return state not in _OVER or by_signal or age(events[-1]["time"]) < LATELY_SECONDS


def status_or_fault(folder: RunFolder, standing: Standing | None = None) -> RunStatus:
    """The same for a list of runs: one whose files cannot be read does not hide the others."""
    try:
        return status_of(folder, standing=standing)
    except UmbelError as error:
        return RunStatus(name=folder.name, state="unreadable", step=0, steps=0, error=str(error))


def goodput_of(folder: RunFolder, state: str) -> Goodput | None:
    """Where a run's time went so far; None before it began. Reads all of its records."""
    events = read_events(folder)
    if not events:
        return None
    return goodput(events, read_lines(folder.metrics, KEYS), time.time() if state in LIVE else None)
