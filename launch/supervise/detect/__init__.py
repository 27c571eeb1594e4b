"""What goes wrong with a run without its processes saying so, found in what they leave behind."""

from __future__ import annotations

from collections.abc import Sequence

from configs.schema import RunConfig
from launch.supervise.detect.disk import DiskDetector
from launch.supervise.detect.hang import HangDetector
from launch.supervise.detect.reports import Reports
from launch.supervise.detect.spikes import SpikeDetector
from launch.supervise.detect.stragglers import StragglerDetector
from launch.supervise.finding import Detector, Finding
from record.folder import RunFolder
from record.heartbeats import clear_reports


def detectors(folder: RunFolder, config: RunConfig, attempt: int, nodes: Sequence[str]) -> list[Detector]:
    """All of them, for one start of the workers on ``nodes``; reports of an earlier start are forgotten."""
    clear_reports(folder)
    reports, settings = Reports(folder, attempt), config.supervision
    return [
        Patient(HangDetector(folder, settings, attempt, nodes, reports)),
        Patient(StragglerDetector(folder, attempt, settings.straggler, reports)),
        Patient(SpikeDetector(folder, config)),
        Patient(DiskDetector(folder, settings.disk_alerts, reports)),
    ]


class Patient:
    """A detector for which files that cannot be read just now are no news."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def look(self, now: float) -> Sequence[Finding]:
        try:
            return self.detector.look(now)
        except OSError:
            return []
