"""Printing logs while they grow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from launch.first_error import Fault
from launch.logs import Log, merged

POLL_SECONDS = 0.3


def print_logs(choose: Callable[[], Sequence[Log]], goes_on: Callable[[], bool]) -> None:
    """Print the chosen logs, and then what is added to them for as long as ``goes_on()``.

    They are chosen anew each time: ranks open their logs some seconds after the launcher did, and a later
    attempt has others.
    """
    known: dict[int, Log] = {}
    while True:
        last = not goes_on()
        logs = [_known(log, known) for log in choose()]
        for log, line in merged(logs, last):
            _print_line(log, line)
        sys.stdout.buffer.flush()
        if last:
            return
        time.sleep(POLL_SECONDS)


def print_faults(faults: Sequence[Fault]) -> None:
    """The first fault and its words, then the others."""
    for fault in faults:
        print(f"── {fault.text}")
        for line in fault.words:
            print(f"   {line}" if line else "")
    sys.stdout.flush()  # what follows is written below the text layer


def _known(log: Log, known: dict[int, Log]) -> Log:
    """The one that was read before: by its inode, for a rank that learns its node's name renames its log. Its
    label may be new, for it is no longer alone."""
    found = known.setdefault(log.file.stat().st_ino, log)
    found.file, found.label = log.file, log.label
    return found


def _print_line(log: Log, line: bytes) -> None:
    label = f"{log.label} │ ".encode() if log.label else b""
    sys.stdout.buffer.write(label + line + b"\n")
