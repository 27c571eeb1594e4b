"""What each process of a run is doing right now, told so cheaply that it is told at every step.

Three hands. A rank writes its *beat* to a small file in its node's own temporary folder, through memory:
no system call. A watcher on the node reads all of them and now and then leaves a *report* in the run's folder,
``control/nodes/<node>.json``. Whoever wants to know reads the reports.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from base.files import read_json, write_json
from record.folder import RunFolder

PHASES = ("starting", "data", "model", "restoring", "step", "evaluating", "sampling", "saving", "ending")
"""What a rank may be at; its place here is what the file holds."""

_LAYOUT = struct.Struct("<q qqqq dd")
_NUMBERED = struct.Struct("<q")


class Beat(NamedTuple):
    """One rank. ``since``: when it began what it is at, ``step`` included (Unix time); ``seconds``: what its
    last whole step took it without waiting for others, or 0."""

    rank: int
    pid: int
    step: int
    phase: str
    since: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What a node's watcher saw at ``time`` (Unix): the beats of its ranks, and facts of the node."""

    node: str
    attempt: int
    time: float
    beats: list[Beat]
    facts: dict[str, Any]


def beats_folder(folder: RunFolder) -> Path:
    """Where this node's ranks beat: in its own temporary folder, one for each user and run."""
    name = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"umbel-{os.getuid()}-{name}"


class Heart:
    """One rank's file. Killed at any moment it leaves a beat, or what reads as none."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._rank, self._file = rank, folder / f"rank-{rank:05d}"
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(descriptor, _LAYOUT.size)
            self._memory = mmap.mmap(descriptor, _LAYOUT.size)
        finally:
            os.close(descriptor)
        self._number = 0

    def beat(self, phase: str, step: int, seconds: float = 0.0) -> None:
        """Say what this rank begins now."""
        # An odd number says: being written. Readers look again (a sequence lock).
        self._number += 2
        _NUMBERED.pack_into(self._memory, 0, self._number - 1)
        facts = self._rank, os.getpid(), step, PHASES.index(phase)
        _LAYOUT.pack_into(self._memory, 0, self._number - 1, *facts, time.time(), seconds)
        _NUMBERED.pack_into(self._memory, 0, self._number)

    def close(self) -> None:
        """Leave no beat behind."""
        self._memory.close()
        self._file.unlink(missing_ok=True)


def read_beats(folder: Path) -> list[Beat]:
    """The beats of this node's ranks, by rank; those that cannot be read just now are left out."""
    return [beat for file in sorted(folder.glob("rank-*")) for beat in _read(file)]


def _read(file: Path) -> Iterator[Beat]:
    with contextlib.suppress(OSError, struct.error, IndexError):
        for _ in range(3):
            number, rank, pid, step, phase, since, seconds = _LAYOUT.unpack(file.read_bytes())
            if number % 2 == 0 and number:
                yield Beat(rank, pid, step, PHASES[phase], since, seconds)
                return


def write_report(folder: RunFolder, report: NodeReport) -> None:
    """Leave a node's report, in place of its last one."""
    place = folder.control / "nodes"
    place.mkdir(exist_ok=True)
    write_json(place / f"{report.node}.json", asdict(report))


def read_reports(folder: RunFolder, attempt: int) -> list[NodeReport]:
    """The newest report of each node of an attempt, by node."""
    found = []
    for file in sorted((folder.control / "nodes").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            content = read_json(file)
            beats = [Beat(*beat) for beat in content.pop("beats")]
            found.append(NodeReport(beats=beats, **content))
    return [report for report in found if report.attempt == attempt]
