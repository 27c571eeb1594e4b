"""One command, once on each of some nodes, each of which answers with a file in a folder that all share."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from base.files import read_json
from launch.supervise.place import Place, Process

TICK_SECONDS = 0.05
SIGHT_SECONDS = 5.0
"""In which a file that is written must be seen here: network file systems take their time."""

LEAVE_SECONDS = 1.0

SLOW, SLOW_SECONDS = 3.0, 10.0
"""Once half of the nodes have answered, the others get so many times that time, and no less than this."""

_SRUN = (
    "--ntasks-per-node=1",
    "--kill-on-bad-exit=0",
    "--wait=0",
    "--no-kill",
    "--overlap",
    "--output=all",
)
"""One task on each node, of which one that dies leaves the others alone."""


class Seen(NamedTuple):
    """A file's content, and when it was seen here (Unix seconds)."""

    content: dict[str, Any]
    when: float


Found = dict[str, Seen]


class Answers(NamedTuple):
    """What came back.

    Attributes:
        found: content of each node's file.
        silent: why there is none, by node.
        printed: by the nodes, and by Slurm.
        refused: the command could not be started anywhere, which is no node's fault.
    """

    found: Found
    silent: dict[str, str]
    printed: list[str]
    refused: bool


class Errand:
    """Sends commands to the nodes of a place.

    Args:
        attempt: the number of the start they come before.
    """

    def __init__(self, place: Place, attempt: int) -> None:
        self.place, self.attempt = place, attempt

    def send(
        self,
        module: Sequence[str],
        nodes: Sequence[str],
        folder: Path,
        seconds: float,
        enough: Callable[[Found], bool] | None = None,
    ) -> Answers:
        """Run ``python -P -m MODULE…`` on each of the nodes, and wait for ``<folder>/<node>.json`` of each.

        Files that are there when the time is over count, also those of a ``"stage"`` other than ``"done"``:
        such a node has more to tell.

        Args:
            seconds: after which nobody is waited for.
            enough: whether the others need not be waited for.

        Raises:
            UmbelError: the command cannot be started from here.
        """
        log, began = folder / "output.log", time.monotonic()
        process = self.place.start(self._command(module, nodes), nodes, log, self.attempt)
        try:
            found = _await(process, nodes, folder, seconds, enough or (lambda _: False))
            code, took = process.poll(), time.monotonic() - began
            printed = log.read_text(errors="replace").splitlines() if log.exists() else []
        finally:
            _end(process)
        reasons = {node: why_silent(node, printed) for node in nodes if node not in found}
        silent = {node: why or f"no answer in {took:.0f} s" for node, why in reasons.items()}
        return Answers(found, silent, printed, refused=bool(code) and not found and not any(reasons.values()))

    def _command(self, module: Sequence[str], nodes: Sequence[str]) -> list[str]:
        python = [sys.executable, "-u", "-P", "-m", *module]
        return python if self.place.job is None else ["srun", f"--ntasks={len(nodes)}", *_SRUN, *python]


def why_silent(node: str, lines: Sequence[str]) -> str | None:
    """The last that was said of a node: by its own probe, else by Slurm."""
    named = re.compile(rf"(?<![\w.-]){re.escape(node)}(?![\w.-])")
    own = [line.partition(f"preflight: {node}: ")[2] for line in lines if f"preflight: {node}: " in line]
    of_slurm = [
        re.sub(rf"^(srun|slurmstepd-?\S*): (error: )?({re.escape(node)}: )?", "", line).strip()
        for line in lines
        if line.startswith(("srun: ", "slurmstepd")) and named.search(line)
    ]
    return next(iter([*own[::-1], *of_slurm[::-1]]), None)


def _await(
    process: Process, nodes: Sequence[str], folder: Path, seconds: float, enough: Callable[[Found], bool]
) -> Found:
    """Read what comes until all have answered, all is over, or nobody need be waited for any more."""
    found: Found = {}
    began, half_done = time.monotonic(), False
    until = began + seconds
    while True:
        over = process.poll() is not None
        _read(nodes, folder, found)
        done, now = sum(map(_is_done, found.values())), time.monotonic()
        if done == len(nodes) or now > until or enough(found):
            return found
        if over:
            # What a node wrote before it ended shows after a while, if it does.
            _look_again(folder)
            until = min(until, now + SIGHT_SECONDS) if process.returncode == 0 else now
        elif not half_done and 2 * done >= len(nodes):
            half_done = True
            until = min(until, now + max(SLOW * (now - began), SLOW_SECONDS))
        time.sleep(TICK_SECONDS)


def _read(nodes: Sequence[str], folder: Path, found: Found) -> None:
    for node in nodes:
        if node not in found or not _is_done(found[node]):
            with contextlib.suppress(OSError, ValueError):
                content = read_json(folder / f"{node}.json")
                if node not in found or found[node].content != content:
                    found[node] = Seen(content, time.time())


def _is_done(answer: Seen) -> bool:
    return bool(answer.content.get("stage", "done") == "done")


def _look_again(folder: Path) -> None:
    """A change of one's own makes a network file system ask its server what else is in a folder."""
    mark = folder / ".look"
    with contextlib.suppress(OSError):
        mark.touch()
        mark.unlink()


def _end(process: Process) -> None:
    """End what is left, once all had the time to end by themselves: srun passes it on to its tasks."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LEAVE_SECONDS)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE_SECONDS)
    if process.poll() is None:
        process.kill()
        process.wait()
