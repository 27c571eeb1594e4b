"""What each process of a run is doing right now, told so cheaply that it is told at every step.

Three hands. A rank writes its *beat* to a small file in its node's own memory: no system call. A watcher on
the node reads all of them and now and then leaves a *report* in the run's folder, as
``control/nodes/<node>.json``. Whoever wants to know reads the reports.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import signal
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from base.errors import UmbelError
from base.files import read_json
from record.folder import RunFolder

PHASES = ("starting", "data", "model", "restoring", "step", "evaluating", "sampling", "saving", "ending")
"""What a rank may be at; its place here is what the file holds."""

STACK_SIGNAL = signal.SIGRTMIN + 5
"""At which a rank writes its threads' stacks. NCCL, torchrun, Slurm and the C library use others."""

_MEMORY = Path("/dev/shm")
_LAYOUT = struct.Struct("=q qqqqq ddd")
_NUMBER = struct.Struct("=q")


class Beat(NamedTuple):
    """One rank. Times in seconds; sums are those since its start, for the difference of two beats to tell.

    Attributes:
        since: when it began what it is at, ``step`` included (Unix time, this node's clock).
        waited: sum of what it waited for the others where all meet, once a step.
        worked: sum of what its device took for one fixed piece of work, ``probes`` times.
    """

    rank: int
    pid: int
    step: int
    phase: str
    since: float
    waited: float = 0.0
    worked: float = 0.0
    probes: int = 0


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What a node's watcher saw at ``time`` (Unix): the beats of its ranks, and facts of the node."""

    node: str
    attempt: int
    time: float
    beats: list[Beat]
    facts: dict[str, Any]


def node_name() -> str:
    """This node's name: Slurm's own for it, which need not be the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def beats_folder(folder: RunFolder) -> Path:
    """Where this node's ranks beat: one folder for each user, run and node.

    In memory where that can be: a page that a disk is writing holds up whoever writes to it.
    """
    told = f"{folder.path.resolve()}\0{node_name()}"
    name = hashlib.sha256(told.encode()).hexdigest()[:16]
    place = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return place / f"umbel-{os.getuid()}-{name}"


def make_beats_folder(folder: RunFolder) -> Path:
    """The same, made for this user's eyes only.

    Raises:
        UmbelError: somebody else made it, in a place where everybody may.
        OSError: it cannot be made.
    """
    path = beats_folder(folder)
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UmbelError("belongs to somebody else", where=str(path), fix="remove it")
    return path


def stack_file(folder: Path, rank: int) -> Path:
    """Where a rank writes its stacks at ``STACK_SIGNAL``, one dump after the other."""
    return folder / f"stacks-{rank:05d}"


class Heart:
    """One rank's file. Killed at any moment it leaves a beat, or what reads as none.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._rank, self._pid, self._file = rank, os.getpid(), folder / f"rank-{rank:05d}"
        # A new file, so that a process that is still ending does not write into it.
        self._file.unlink(missing_ok=True)
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            # With its room: a write to a page that a full file system cannot give would kill the process.
            os.posix_fallocate(descriptor, 0, _LAYOUT.size)
            self._memory = mmap.mmap(descriptor, _LAYOUT.size)
            self._inode = os.fstat(descriptor).st_ino
        finally:
            os.close(descriptor)
        self._number = 0

    def beat(
        self,
        phase: str,
        step: int,
        waited: float = 0.0,
        worked: float = 0.0,
        probes: int = 0,
    ) -> None:
        """Say what this rank begins now; the rest as in `Beat`."""
        # An odd number says: being written. Readers look again (a sequence lock).
        self._number += 2
        _NUMBER.pack_into(self._memory, 0, self._number - 1)
        facts = self._rank, self._pid, step, PHASES.index(phase), probes
        _LAYOUT.pack_into(self._memory, 0, self._number - 1, *facts, time.time(), waited, worked)
        _NUMBER.pack_into(self._memory, 0, self._number)

    def close(self) -> None:
        """Leave nothing behind."""
        self._memory.close()
        with contextlib.suppress(OSError):
            if self._file.stat().st_ino == self._inode:  # or it is a later start's
                forget(self._file.parent, self._rank)


def read_beats(folder: Path) -> list[Beat]:
    """The beats of this node's ranks, by rank; those that cannot be read just now are left out."""
    return [beat for file in sorted(folder.glob("rank-?????")) for beat in _read(file)]


def forget(folder: Path, rank: int) -> None:
    """Remove what a process left that is gone, and the folder with the last of them."""
    for file in (folder / f"rank-{rank:05d}", stack_file(folder, rank)):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _read(file: Path) -> Iterator[Beat]:
    with contextlib.suppress(OSError, struct.error, IndexError):
        for _ in range(5):
            content = file.read_bytes()
            number, rank, pid, step, phase, probes, since, waited, worked = _LAYOUT.unpack(content)
            # Whole if it was not being written, neither before it was read nor since.
            if number and number % 2 == 0 and content == file.read_bytes():
                yield Beat(rank, pid, step, PHASES[phase], since, waited, worked, probes)
                return


def write_report(folder: RunFolder, report: NodeReport) -> None:
    """Leave a node's report, in place of its last one. It need not survive a power cut: nothing is synced."""
    place = _reports(folder)
    place.mkdir(exist_ok=True)
    file = place / f"{report.node}.json"
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(report), allow_nan=False))
    os.replace(temporary, file)


def read_reports(folder: RunFolder, attempt: int) -> list[NodeReport]:
    """The newest report of each node of an attempt, by node."""
    found = []
    for file in sorted(_reports(folder).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content = read_json(file)
            beats = [Beat(*beat) for beat in content.pop("beats")]
            found.append(NodeReport(beats=beats, **content))
    return [report for report in found if report.attempt == attempt]


def clear_reports(folder: RunFolder) -> None:
    """Forget what watchers of an earlier start left."""
    for file in _reports(folder).glob("*"):
        with contextlib.suppress(OSError):
            file.unlink()


def _reports(folder: RunFolder) -> Path:
    return folder.control / "nodes"
