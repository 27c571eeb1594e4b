"""The watcher of one node: ``python -P -m launch.supervise.node RUN ATTEMPT``.

Reads the beats of the node's ranks, leaves reports of them, and takes their stacks when it is asked to.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from configs.compose import load
from data.folders import cache_folder
from launch.supervise.dumps import take_stacks
from launch.supervise.machine import Facts, Machine
from launch.supervise.stacks import requests, stacks_folder
from record.folder import RunFolder
from record.heartbeats import (
    Beat,
    NodeReport,
    beats_folder,
    forget,
    node_name,
    read_beats,
    write_report,
)

_PR_SET_PDEATHSIG = 1

LOOK_SECONDS = 1.0
REPORT_SECONDS = 2.0
REPORT_SECONDS_OF_MANY = 5.0
MANY_NODES = 16
"""From so many nodes on, reports come more seldom: they all go to one file system."""


class Watcher:
    """Watches the ranks of one attempt on this node."""

    def __init__(self, folder: RunFolder, attempt: int, places: dict[str, Path]) -> None:
        self.folder, self.attempt, self.node = folder, attempt, node_name()
        self.machine = Machine(places)
        self.every = REPORT_SECONDS if _node_count() < MANY_NODES else REPORT_SECONDS_OF_MANY
        self.reported, self.told = -self.every, ""
        self._tidy()

    def run(self, parent: int) -> None:
        """Look once a second while the parent lives; then remove what dead processes left."""
        try:
            while os.getppid() == parent:
                self._look()
                time.sleep(LOOK_SECONDS)
        finally:
            self._tidy()

    def _look(self) -> None:
        try:
            self.look(time.monotonic())
            self.told = ""
        except OSError as error:
            self._tell(f"{error.filename or self.folder.path}: {error.strerror}")

    def look(self, now: float) -> None:
        """Report, if it is time to; answer what is asked."""
        if now - self.reported >= self.every:
            self.reported = now
            self._report()
        for number in requests(self.folder, self.attempt):
            place = stacks_folder(self.folder, self.attempt, number)
            if not (place / f"{self.node}.json").exists():
                take_stacks(self._beats(), self.node, beats_folder(self.folder), place)

    def _tidy(self) -> None:
        """Forget the beats of processes that are gone: at this watcher's start, of an earlier attempt's."""
        for beat in self._beats():
            if not lives(beat):
                forget(beats_folder(self.folder), beat.rank)

    def _beats(self) -> list[Beat]:
        return read_beats(beats_folder(self.folder))

    def _report(self) -> None:
        beats = self._beats()
        gone = [beat.rank for beat in beats if not lives(beat)]
        facts: Facts = {**self.machine.facts(), **({"gone": gone} if gone else {})}
        report = NodeReport(node=self.node, attempt=self.attempt, time=time.time(), beats=beats, facts=facts)
        write_report(self.folder, report)

    def _tell(self, text: str) -> None:
        """A fault that lasts is told once."""
        if text != self.told:
            print(f"umbel: watcher on {self.node}: {text}", file=sys.stderr, flush=True)
        self.told = text


def lives(beat: Beat) -> bool:
    """Whether the process that left a beat is still there, and not another one of the same number."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(beat.pid)
        # The kernel counts in hundredths; a beat is never older than its process.
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= beat.since + 1
    return False


def _node_count() -> int:
    return int(os.environ.get("SLURM_NNODES") or 1)


def main(run: Path, attempt: int) -> int:
    """Watch until told to end, or until the parent is gone."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning goes to all steps
    folder = RunFolder(run.resolve())
    places = {"run": folder.path, "cache": cache_folder(load(folder.run_yaml).data)}
    Watcher(folder, attempt, places).run(parent)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2])))
