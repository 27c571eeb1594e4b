"""Where a run's workers live, as their supervisor sees it: this machine, or the nodes of a Slurm job."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Process = subprocess.Popen[bytes]


class Place(Protocol):
    """What the supervisor asks of the machines. Nothing here knows what training is."""

    @property
    def job(self) -> str | None:
        """The id of the job that gives the machines; None where they are simply there."""

    @property
    def grace(self) -> float:
        """Seconds before the deadline at which the workers are asked to save."""

    def nodes(self) -> list[str]:
        """The nodes at hand, spares included, those that are gone excluded; this one first."""

    def lost(self, nodes: Sequence[str], /) -> list[str]:
        """Those of these nodes that are gone."""

    def start(self, command: Sequence[str], nodes: Sequence[str], log: Path, attempt: int, /) -> Process:
        """Start the workers on exactly these nodes; what they and their launcher print is added to ``log``.

        Raises:
            UmbelError: they cannot be started.
        """

    def start_watchers(self, attempt: int, nodes: Sequence[str], log: Path, /) -> list[Process]:
        """Start ``launch.supervise.node``, one on each of these nodes."""

    def end(self, process: Process, kind: int, /) -> int:
        """Signal everything that came from a process of :meth:`start`; returns how much of it still lives."""

    def deadline(self) -> float | None:
        """When the machines are taken away (Unix time); None: not."""

    def why_stopped(self) -> str | None:
        """Who else ended the workers: ``cancelled``, ``preempted``, ``requeued``, ``time limit``, or None."""

    def requeues(self) -> bool:
        """Whether :meth:`requeue` can bring the run back later, on other nodes perhaps."""

    def requeue(self, exclude: Sequence[str], /) -> None:
        """Have the run started again when there is room, not on the nodes ``exclude``; may end this process.

        Raises:
            UmbelError: it cannot be.
        """

    def leave(self) -> None:
        """The run ends here: nothing that waits to go on with it is needed any more."""
