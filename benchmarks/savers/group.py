"""The processes of one tool, as the benchmark speaks with them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

DEADLINE = 180
"""Seconds for an answer."""

SAMPLE_SECONDS = 0.02


class Failed(Exception):
    """A request that a tool could not serve, in its words."""


class Group:
    """The processes of one tool. Requests go to all; answers come back one a process."""

    def __init__(self, tool: str, folder: Path, processes: int, overrides: Sequence[str]) -> None:
        self.tool = tool
        own = folder / re.sub(r"\W+", "-", tool)
        own.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "savers.measure", tool, str(own), *overrides]
        here = Path(__file__).resolve().parents[1]
        # The repository first: there checkpoint is a package, and here a file.
        paths = [str(here.parent), str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
        common = {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(processes),
        }
        self.processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(own / "log").open("a"),
                text=True,
                cwd=here.parent,
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]

    @functools.cached_property
    def ready(self) -> dict[str, Any]:
        """Facts of the tool, or why it does not run."""
        return self._answers()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The first process's answer, with the longest ``blocked`` of all."""
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # its answer says so
                process.stdin.write(json.dumps({"do": do, **request}) + "\n")
                process.stdin.flush()
        answer = self._answers()
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()

    def memory(self) -> int:
        """Of all processes and their children. Proportional: what they share counts once."""
        total = 0
        for process in self.processes:
            own = psutil.Process(process.pid)
            for each in [own, *own.children(recursive=True)]:
                with contextlib.suppress(OSError):
                    total += held_by(each.pid)
        return total

    def _answers(self) -> dict[str, Any]:
        answers = []
        deadline = threading.Timer(DEADLINE, self._kill)
        deadline.start()
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            answers.append(json.loads(line) if line else {"error": "its process ended, or did not answer"})
        deadline.cancel()
        first = next((answer for answer in answers if "error" in answer), answers[0])
        blocked = [answer["blocked"] for answer in answers if "blocked" in answer]
        return {**first, **({"blocked": max(blocked)} if blocked else {})}

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()


class Sampler(threading.Thread):
    """The most memory that a tool's processes hold while something goes on."""

    def __init__(self, group: Group) -> None:
        super().__init__(daemon=True)
        self.group, self.most, self.ended = group, group.memory(), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            self.most = max(self.most, self.group.memory())

    def end(self) -> int:
        self.ended.set()
        self.join()
        return self.most


def held_by(pid: int) -> int:
    """Bytes without mapped files, which the kernel takes back (its Documentation/filesystems/proc.rst)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return 1024 * (fields["Pss_Anon"] + fields["Pss_Shmem"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
