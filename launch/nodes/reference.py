"""What each node did at earlier starts, so that a slow one shows by comparison with itself.

``<runs>/.nodes/<node>.jsonl``, one line per start, beside the runs, for all of them.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base.errors import UmbelError
from base.files import write_text
from record.folder import RunFolder
from record.jsonl import append_lines, read_lines

KEPT = 100
"""Lines of a node that are kept; a file is cut when it has twice as many."""

ENOUGH = 3
"""Earlier starts from which on they are a measure."""


class History:
    """The nodes' earlier figures in a folder. A line that cannot be read or written is done without."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rates(self, node: str, device: str) -> list[float]:
        """TFLOP/s of a node's slowest device at earlier starts, oldest first."""
        return [
            float(min(line["rates"]))
            for line in self._lines(node)
            if line.get("device") == device and line.get("rates")
        ]

    def bandwidths(self, node: str, device: str, size: int) -> list[float]:
        """GB/s of earlier all-reduces over so many nodes, this one among them, oldest first."""
        return [
            float(line["bandwidth"])
            for line in self._lines(node)
            if line.get("device") == device and line.get("size") == size and line.get("bandwidth")
        ]

    def remember(self, node: str, line: dict[str, Any]) -> None:
        """Add what a node did now."""
        file = self._file(node)
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            append_lines(file, [line])
            lines = self._lines(node)
            if len(lines) > 2 * KEPT:
                write_text(file, "".join(f"{json.dumps(each)}\n" for each in lines[-KEPT:]))

    def _lines(self, node: str) -> list[dict[str, Any]]:
        try:
            return read_lines(self._file(node))
        except (OSError, UmbelError):
            return []

    def _file(self, node: str) -> Path:
        return self.folder / f"{node}.jsonl"


def history_of(folder: RunFolder) -> History:
    """That of the runs among which this one lies."""
    return History(folder.path.resolve().parent / ".nodes")


def usual(earlier: Sequence[float]) -> float | None:
    """The median of earlier figures; None where there are too few."""
    return statistics.median(earlier) if len(earlier) >= ENOUGH else None
