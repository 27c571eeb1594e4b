"""Where a run's records stood at some moment, and what has been added since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record.events import read_events
from record.folder import RunFolder

_ENOUGH = 200_000
"""Bytes of a log's end in which the last start's own words stand."""


@dataclass(frozen=True)
class Marks:
    """One start of a run, seen from outside: lengths of the run's files when it began."""

    folder: RunFolder
    log: Path
    events_before: int
    log_before: int
    metrics_before: int

    @classmethod
    def now(cls, folder: RunFolder, log: Path) -> Marks:
        """Begin here."""
        return cls(folder, log, len(read_events(folder)), _size(log), _size(folder.metrics))

    def events(self) -> list[dict[str, Any]]:
        """What happened since."""
        return read_events(self.folder)[self.events_before :]

    def output(self) -> str:
        """What was printed since; its end, where it is long."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(self.log_before, _size(self.log) - _ENOUGH))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    @property
    def stepped(self) -> bool:
        """Whether a step was made since: the first one's line is written at once."""
        return _size(self.folder.metrics) > self.metrics_before


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
