"""Run a function in several processes, as torchrun would start them."""

from __future__ import annotations

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("child.py")
GRACE = 3.0
"""Seconds that the other processes get once one has failed: enough to tell their own errors."""


@dataclass
class Finished:
    """How one process ended."""

    returncode: int
    stdout: str
    stderr: str


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def worker_env(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets, for one process of one node."""
    names = ("RANK", "LOCAL_RANK"), ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    ranks = dict.fromkeys(names[0], str(rank)) | dict.fromkeys(names[1], str(world_size))
    return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run_workers(
    n: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 120,
    env: dict[str, str] | None = None,
    gloo: bool = True,
) -> list[Any]:
    """Call ``function(*args)`` in ``n`` fresh processes and return what each gave back, by rank.

    The function stands at the top level of any file; arguments and results cross as JSON. With ``gloo`` a
    process group is ready when it starts. A process that fails, or a timeout, kills all of them and raises
    AssertionError with what they wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder) / "call.json"
        source = inspect.getsourcefile(function)
        call.write_text(json.dumps({"file": source, "name": function.__name__, "args": args, "gloo": gloo}))
        finished = run_commands(n, [sys.executable, str(CHILD), str(call)], timeout=timeout, env=env)
        for rank, process in enumerate(finished):
            assert process.returncode == 0, _failure(rank, finished)
        return [json.loads(Path(folder, f"result-{rank}.json").read_text()) for rank in range(n)]


def run_commands(
    n: int,
    command: Sequence[str],
    *,
    timeout: float = 120,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> list[Finished]:
    """Run ``command`` once per rank, wait for all, and leave none behind."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        outputs = [(Path(folder, f"{rank}.out"), Path(folder, f"{rank}.err")) for rank in range(n)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, (out, err) in enumerate(outputs):
                environment = os.environ | worker_env(rank, n, port) | (env or {})
                with out.open("wb") as stdout, err.open("wb") as stderr:
                    processes.append(
                        subprocess.Popen(
                            command,
                            env=environment,
                            cwd=cwd,
                            stdout=stdout,
                            stderr=stderr,
                            start_new_session=True,
                        )
                    )
            _wait(processes, timeout)
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return [
            Finished(process.returncode, out.read_text(errors="replace"), err.read_text(errors="replace"))
            for process, (out, err) in zip(processes, outputs, strict=True)
        ]


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes:
            return
        if any(codes):
            deadline = min(deadline, time.monotonic() + GRACE)
        time.sleep(0.02)


def _failure(rank: int, finished: list[Finished]) -> str:
    told = [f"process {rank} ended with {finished[rank].returncode}"]
    for other, process in enumerate(finished):
        told.append(f"--- process {other} ({process.returncode}) ---")
        told += [process.stdout[-2000:], process.stderr[-4000:]]
    return "\n".join(told)
