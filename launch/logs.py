"""The logs of a run: which there are, and their lines in the order in which they were written."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from base.errors import UmbelError
from record.events import latest, read_events
from record.folder import RunFolder
from record.rank_logs import rank_logs

_NODE = re.compile(r"rank-\d+\.(?P<node>.+)\.log")
_TIME = re.compile(rb"\W{0,2}(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?)")
"""A time with which many libraries begin their lines."""


@dataclass
class Log:
    """A file of which more and more is read.

    Attributes:
        label: stands before each of its lines; empty where it is shown alone.
    """

    file: Path
    label: str = ""
    read: int = 0
    time: bytes = b""
    _rest: bytes = field(default=b"", repr=False)

    def lines(self, last: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """What is new, each whole line with its time: that of the line before, where it has none.

        Args:
            last: whether a line that has no end yet counts.
        """
        with open(self.file, "rb") as file:
            file.seek(self.read)
            new = self._rest + file.read()
            self.read = file.tell()
        *whole, self._rest = new.split(b"\n")
        if last and self._rest:
            whole, self._rest = [*whole, self._rest], b""
        for line in whole:
            if found := _TIME.match(line):
                self.time = found[1].replace(b"T", b" ").replace(b",", b".")
            yield self.time, line


def merged(logs: Sequence[Log], last: bool = False) -> Iterator[tuple[Log, bytes]]:
    """What is new in all of them, by time; in turn where lines tell none."""

    def told(number: int, log: Log) -> Iterator[tuple[bytes, int, bytes]]:
        # A clock that is set back must not let one log's lines change places.
        newest = b""
        for time, line in log.lines(last):
            newest = max(newest, time)
            yield newest, number, line

    streams: Iterable[Iterator[tuple[bytes, int, bytes]]] = (
        told(number, log) for number, log in enumerate(logs)
    )
    for _, number, line in heapq.merge(*streams, key=lambda each: each[:2]):
        yield logs[number], line


def worker_logs(folder: RunFolder, rank: int | None, attempt: int | None) -> list[Log]:
    """Those of an attempt's ranks, or of one rank; the launcher's where no rank has written yet.

    Raises:
        UmbelError: there is none; says which ranks wrote one.
    """
    number = attempt or newest_attempt(folder)
    found = rank_logs(folder, number)
    if rank is not None and rank in found:
        return [Log(found[rank])]
    if rank is None and found:
        labels = {each: _label(each, file) for each, file in found.items()} if len(found) > 1 else {}
        return [Log(file, labels.get(each, "")) for each, file in found.items()]
    if rank is None and attempt is None and (launcher := launcher_logs(folder)):
        return launcher
    fix = "ranks that wrote one: " + ", ".join(map(str, found)) if found else "that attempt wrote none"
    raise UmbelError(f"no log of rank {rank or 0} in attempt {number}", where=folder.name, fix=fix)


def launcher_logs(folder: RunFolder) -> list[Log]:
    """What Slurm's batch scripts, supervisors and watchers printed, oldest first."""
    files = [*folder.logs.glob("*.log"), *folder.logs.glob("slurm-*.out")]
    there = sorted(files, key=lambda file: file.stat().st_mtime)
    return [Log(file, file.stem if len(there) > 1 else "") for file in there]


def newest_attempt(folder: RunFolder) -> int:
    """The newest of which a rank has written anything; else the newest that started."""
    numbers = (int(place.name.partition("-")[2]) for place in folder.logs.glob("attempt-[0-9]*"))
    written = max((number for number in numbers if rank_logs(folder, number)), default=0)
    start = latest(read_events(folder), "start")
    return written or (start["attempt"] if start else 1)


def log_of(folder: RunFolder, rank: int, attempt: int) -> Path | None:
    """What one rank of an attempt printed, if it did."""
    return rank_logs(folder, attempt).get(rank)


def tail(file: Path, lines: int, size: int = 1 << 16) -> list[str]:
    """The last lines of a file."""
    with open(file, "rb") as opened:
        opened.seek(max(0, opened.seek(0, 2) - size))
        return opened.read().decode(errors="replace").splitlines()[-lines:]


def _label(rank: int, file: Path) -> str:
    """``3@node17``, or ``3`` where all ranks are on one node."""
    found = _NODE.fullmatch(file.name)
    return f"{rank}@{found['node']}" if found else str(rank)
