"""File systems that fill up: told at each of some shares, once, while there is time to do something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from base.files import human_bytes
from checkpoint.disk import NAMED, spare_folders
from launch.supervise.detect.reports import Reports
from launch.supervise.finding import Finding
from record.events import read_events
from record.folder import RunFolder
from record.heartbeats import NodeReport

EASED = 0.02
"""So far below a share a disk must fall before that share is told again."""


class Use(NamedTuple):
    """Share in use, and bytes that are free, as a node sees them."""

    share: float
    node: str
    free: float


class DiskDetector:
    """Tells when the run's folder or a cache passes a share of its bytes, inodes or quota."""

    def __init__(self, folder: RunFolder, shares: Sequence[float], reports: Reports) -> None:
        self.folder, self.shares, self.reports = folder, sorted(shares), reports
        # What was told before this start stands in the events: a restart is no news.
        self._told: dict[tuple[str, str], float] = {
            (event["path"], event["of"]): event["level"]
            for event in read_events(folder)
            if event["event"] == "disk"
        }

    def look(self, now: float) -> Sequence[Finding]:
        return [*self._findings(self.reports.newest(now))]

    def _findings(self, reports: Sequence[NodeReport]) -> Iterator[Finding]:
        for (path, of), use in usage(reports).items():
            before = self._told.get((path, of), 0.0)
            level = reached(use.share, self.shares, before)
            if level != before:
                self._told[path, of] = level
                facts = {"path": path, "of": of, "share": round(use.share, 4), "level": level}
                # An event either way; only growth is worth an alert.
                grown = level > before
                text = self._text(path, of, use, grown=grown)
                yield Finding(kind="disk", text=text, alert=grown, facts=facts)

    def _text(self, path: str, of: str, use: Use, *, grown: bool) -> str:
        text = f"{path} on {use.node}: {use.share:.0%} of its {of} are used, {human_bytes(use.free)} are free"
        spare = could_go(self.folder.checkpoints) if grown else ""
        return f"{text}; could go: {spare}" if spare else text


def usage(reports: Sequence[NodeReport]) -> dict[tuple[str, str], Use]:
    """(path, of what) → use. A path may be one file system for all nodes, or each node's own: the fullest
    counts."""
    found: dict[tuple[str, str], Use] = {}
    for report in reports:
        for disk in report.facts.get("disks", {}).values():
            for of, share in _shares(disk):
                use = Use(share, report.node, disk["bytes"] - disk["bytes_used"])
                key = disk["path"], of
                found[key] = max(use, found.get(key, use))
    return found


def _shares(disk: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for of in ("bytes", "inodes"):
        if disk[of]:  # none: the file system makes them as it needs them
            yield of, disk[f"{of}_used"] / disk[of]
    for of, share in disk.get("quota", {}).items():
        yield f"quota of {of}", share


def reached(used: float, shares: Sequence[float], before: float) -> float:
    """The highest of ``shares`` that is passed, 0 for none; one that was passed before holds until it is
    clearly passed no more."""
    passed = [share for share in shares if used >= share or (share <= before and used > share - EASED)]
    return max(passed, default=0.0)


def could_go(checkpoints: Path) -> str:
    """What the run can do without, by name."""
    spare = spare_folders(checkpoints)
    more = f" and {len(spare) - NAMED} more" if len(spare) > NAMED else ""
    return ", ".join(folder.name for folder in spare[:NAMED]) + more
