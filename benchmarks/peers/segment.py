"""A part of a run: every rank a process of its own, and JSON all that it leaves behind."""

from __future__ import annotations

import json
import linecache
import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peers import Adapter, Place, Rows, Wish

DEADLINE = 120
"""Seconds after which a segment counts as hanging."""


@dataclass(frozen=True)
class Segment:
    """Steps up to ``stop`` on some topology; ``batch`` rows at a time."""

    stop: int
    world_size: int = 2
    workers: int = 1
    batch: int = 12


MEANT = ("AssertionError", "NotImplementedError", "RuntimeError", "UmbelError", "ValueError")
"""Errors that a tool raises itself; others happen to it."""


class Refused(Exception):
    """A tool that says it cannot, or breaks; the text is its own."""

    @property
    def verdict(self) -> str:
        return "refuses" if str(self).startswith(MEANT) else "breaks"


def read_segment(
    adapter: Adapter, folder: Path, segment: Segment, wish: Wish, states: list[Any] | None
) -> tuple[list[Rows], list[Any]]:
    """Each step's rows, and the states of all ranks.

    Rows are in order of their slots where the tool tells them, else rank by rank. The last steps may hold
    fewer rows, or be missing, where the tool's epoch ends.

    Raises:
        Refused: a rank ended in an error, or took too long.
    """
    with tempfile.TemporaryDirectory() as made:
        task = Path(made)
        (task / "states.json").write_text(json.dumps(states))
        places = [
            Place(rank, segment.world_size, segment.workers, segment.batch)
            for rank in range(segment.world_size)
        ]
        _run(adapter, folder, places, wish, task)
        told = [_told(task / f"{place.rank}.json") for place in places]
        if errors := [each["error"] for each in told if "error" in each]:
            raise Refused(errors[0])
        parts = [np.load(task / f"{place.rank}.npy") for place in places]
    steps = []
    for step in range(max(map(len, parts))):
        rows = np.concatenate([part[step] for part in parts if step < len(part)])
        steps.append(rows[rows[:, 0] >= 0])
    return _in_order(steps) if adapter.slots else steps, [each.get("state") for each in told]


def _told(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise Refused("a rank died")
    told: dict[str, Any] = json.loads(path.read_text())
    return told


def _in_order(steps: list[Rows]) -> list[Rows]:
    """Rows by their slots, which no rank but one may have read, without them."""
    steps = [rows[np.argsort(rows[:, -1])] for rows in steps]
    slots = np.concatenate(steps)[:, -1]
    assert (np.diff(slots) == 1).all(), "two ranks read one slot, or none did"
    return [rows[:, :-1] for rows in steps]


def _run(adapter: Adapter, folder: Path, places: list[Place], wish: Wish, task: Path) -> None:
    # Forked, so that the tool is imported once for all of them.
    fork, port = multiprocessing.get_context("fork"), _free_port()
    ranks = [fork.Process(target=_rank, args=(adapter, folder, place, wish, task, port)) for place in places]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + DEADLINE
    for rank in ranks:
        rank.join(max(0.0, end - time.monotonic()))
    hanging = [rank for rank in ranks if rank.is_alive()]
    for rank in hanging:
        rank.kill()
        rank.join()
    if hanging:
        raise Refused(f"{len(hanging)} of {len(ranks)} ranks hang")


def _rank(adapter: Adapter, folder: Path, place: Place, wish: Wish, task: Path, port: int) -> None:
    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.rank),
        "GLOBAL_RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_WORLD_SIZE": str(place.world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    log = os.open(task / f"{place.rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    told: dict[str, Any] = {}
    steps: list[Rows] = []
    try:
        told["state"] = _read(
            adapter, folder, place, wish, json.loads((task / "states.json").read_text()), steps
        )
    except Exception as error:
        told["error"] = _describe(error)
    longest, width = max(map(len, steps), default=0), steps[0].shape[1] if steps else 1
    padded = np.full((len(steps), longest, width), -1, np.int64)
    for index, step in enumerate(steps):
        padded[index, : len(step)] = step
    np.save(task / f"{place.rank}.npy", padded)
    (task / f"{place.rank}.json").write_text(json.dumps(told))
    for child in multiprocessing.active_children():
        child.kill()
    # Threads of the libraries, and their hooks at exit, may wait for rows that nobody takes.
    os._exit(0)


def _read(
    adapter: Adapter, folder: Path, place: Place, wish: Wish, states: list[Any] | None, steps: list[Rows]
) -> Any:
    """Append the rank's rows of each step to ``steps``; its state after the last, None at the epoch's end."""
    reader = adapter.open(folder, place, wish, states)
    batches, share = iter(reader), wish.global_batch // place.world_size
    for _ in range(wish.first, wish.stop):
        taken: list[Rows] = []
        while sum(map(len, taken)) < share:
            batch = next(batches, None)
            if batch is None:
                break
            taken.append(np.array(batch, np.int64))
        if taken:
            steps.append(np.concatenate(taken))
        if sum(map(len, taken)) < share:
            return None
    return reader.state()


def _describe(error: Exception) -> str:
    """An error in a line; for a bare assertion the line that asserts."""
    text = str(error).strip()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    lines = text.splitlines() or [linecache.getline(frame.filename, frame.lineno or 0).strip()]
    # What a DataLoader's worker raised ends with it, by name.
    return lines[-1] if text.startswith("Caught ") else f"{type(error).__name__}: {lines[0]}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
