"""This machine: the workers are children of their supervisor, and nobody takes the machine away."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from base.errors import UmbelError
from launch import processes
from launch.supervise.place import Process
from record.heartbeats import node_name


class LocalPlace:
    """`Place` without Slurm. ``keep``: descriptors that the workers hold open, too: the run's launch lock."""

    job: str | None = None
    grace = 0.0

    def __init__(self, folder: Path, keep: tuple[int, ...] = ()) -> None:
        self.folder, self.keep = folder, keep
        processes.adopt_orphans()

    def nodes(self) -> list[str]:
        return [node_name()]

    def lost(self, _nodes: Sequence[str]) -> list[str]:
        return []

    def start(self, command: Sequence[str], _nodes: Sequence[str], log: Path, _attempt: int) -> Process:
        """Start them in a session of their own."""
        try:
            return processes.start(list(command), dict(os.environ), log, keep=self.keep)
        except OSError as error:
            raise UmbelError(f"cannot be started ({error.strerror})", where=command[0]) from error

    def start_watchers(self, attempt: int, _nodes: Sequence[str], log: Path) -> list[Process]:
        watcher = [sys.executable, "-u", "-P", "-m", "launch.supervise.node", str(self.folder), str(attempt)]
        return [processes.start(watcher, dict(os.environ), log, session=False)]

    def end(self, process: Process, kind: int) -> int:
        return processes.end(process, kind)

    def deadline(self) -> float | None:
        return None

    def why_stopped(self) -> str | None:
        return None

    def requeues(self) -> bool:
        return False

    def requeue(self, _exclude: Sequence[str]) -> None:
        raise UmbelError("nobody here starts it again later", where=str(self.folder))

    def leave(self) -> None: ...
