"""The newest word of every node, read for all detectors at once."""

from __future__ import annotations

from record.folder import RunFolder
from record.heartbeats import Beat, NodeReport, read_reports

SECONDS = 2.0
"""Between two readings: no report is written more often."""


class Reports:
    """Reads the reports of an attempt's nodes now and then."""

    def __init__(self, folder: RunFolder, attempt: int) -> None:
        self.folder, self.attempt = folder, attempt
        self._newest: list[NodeReport] = []
        self._read = float("-inf")

    def newest(self, now: float) -> list[NodeReport]:
        """One for each node that has reported, by node. The same list until there may be news."""
        if not 0 <= now - self._read < SECONDS:
            self._newest, self._read = read_reports(self.folder, self.attempt), now
        return self._newest


def beats(reports: list[NodeReport]) -> dict[int, Beat]:
    """Rank → its beat."""
    return {beat.rank: beat for report in reports for beat in report.beats}


def nodes_of(reports: list[NodeReport]) -> dict[int, str]:
    """Rank → its node."""
    return {beat.rank: report.node for report in reports for beat in report.beats}
