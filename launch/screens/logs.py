"""Finding a log, and printing it while it grows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from base.errors import UmbelError
from record.events import latest, read_events
from record.folder import RunFolder


def choose_log(folder: RunFolder, rank: int | None, attempt: int | None) -> Path:
    """The log of a rank; where no rank was asked for and rank 0 wrote none, the launcher's.

    Raises:
        UmbelError: there is none; says which ranks wrote one.
    """
    start = latest(read_events(folder), "start")
    number = attempt or (start["attempt"] if start else 1)
    log = folder.rank_log(number, rank or 0)
    if log.is_file():
        return log
    launcher = folder.logs / "launch.log"
    if rank is None and attempt is None and launcher.is_file():
        return launcher
    ranks = sorted(int(file.stem.removeprefix("rank-")) for file in log.parent.glob("rank-*.log"))
    fix = "ranks that wrote one: " + ", ".join(map(str, ranks)) if ranks else "that attempt wrote none"
    raise UmbelError(f"no log of rank {rank or 0} in attempt {number}", where=folder.name, fix=fix)


def print_log(choose: Callable[[], Path], goes_on: Callable[[], bool]) -> None:
    """Print the chosen file, and then what is added to it for as long as ``goes_on()``.

    It is chosen anew each time: rank 0 opens its log some seconds after the launcher did.
    """
    printed: dict[Path, int] = {}
    while True:
        last_round, log = not goes_on(), choose()
        printed[log] = _print_from(log, printed.get(log, 0))
        if last_round:
            return
        time.sleep(0.3)


def _print_from(log: Path, start: int) -> int:
    """Print a file from a byte on; returns where it ends."""
    with open(log, "rb") as file:
        file.seek(start)
        while chunk := file.read(1 << 16):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return file.tell()
