"""Which processes are the test cluster's, and how they end. Nothing is remembered: /proc is asked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmscriptd", "slurmd")
STEP = "slurmstepd"
TASK = "task"


@dataclass(frozen=True)
class Process:
    """One process of a test cluster: a daemon, the keeper of a job's step, or a task of a job."""

    pid: int
    kind: str
    node: str | None = None


def processes(folder: Path) -> list[Process]:
    """Every living process of the cluster in ``folder``, whoever started it and when.

    A daemon is known by its program and by a file of the folder's ``log`` that it holds open, a job's task by
    its environment. A process id that another program got since is neither.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            # A process may end while it is looked at, or be another user's.
            with suppress(OSError):
                found += [process] if (process := _recognise(entry, folder)) else []
    return sorted(found, key=lambda process: process.pid)


def _recognise(entry: Path, folder: Path) -> Process | None:
    # Debian's Slurm is called slurmd-wlm and so on, beside links without the ending.
    pid, program = int(entry.name), Path(os.readlink(entry / "exe")).name.removesuffix("-wlm")
    if program in (*DAEMONS, STEP):
        logs = [name for name in _open_files(entry) if name.parent == folder / "log"]
        # The controller's helper for scripts is its child: the same program by another name.
        helper = (entry / "comm").read_text().strip() == "slurmscriptd"
        return Process(pid, "slurmscriptd" if helper else program, _node_of_logs(logs)) if logs else None
    environment = _environment(entry)
    if environment.get("SLURM_CONF") == str(folder / "slurm.conf") and "SLURM_JOB_ID" in environment:
        return Process(pid, TASK, environment.get("SLURMD_NODENAME"))
    return None


def _open_files(entry: Path) -> list[Path]:
    return [Path(os.readlink(descriptor)) for descriptor in (entry / "fd").iterdir()]


def _node_of_logs(logs: list[Path]) -> str | None:
    names = [log.stem.removeprefix("slurmd-") for log in logs if log.stem.startswith("slurmd-")]
    return names[0] if names else None


def _environment(entry: Path) -> dict[str, str]:
    variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)


def end(find: Callable[[], Sequence[Process]], *, patience: float) -> list[Process]:
    """End what ``find`` finds: ask with SIGTERM, and after ``patience`` seconds SIGKILL.

    Returns:
        what is still there ten seconds after that.
    """
    _signal(find(), signal.SIGTERM if patience else signal.SIGKILL)
    if patience and not _left(find, patience):
        return []
    deadline = time.monotonic() + 10
    while (living := find()) and time.monotonic() < deadline:
        _signal(living, signal.SIGKILL)
        time.sleep(0.05)
    return list(living)


def _left(find: Callable[[], Sequence[Process]], patience: float) -> Sequence[Process]:
    deadline = time.monotonic() + patience
    while (living := find()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return living


def _signal(targets: Sequence[Process], kind: signal.Signals) -> None:
    for process in targets:
        with suppress(ProcessLookupError):
            os.kill(process.pid, kind)
