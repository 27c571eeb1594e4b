"""Ending a run now, without a save: its jobs in Slurm, or its processes on this machine."""

from __future__ import annotations

import contextlib
import getpass
import signal
import socket
import time
from collections.abc import Sequence

import psutil

from base.errors import UmbelError
from configs.compose import load
from launch.slurm.ask import ask, has_slurm
from launch.slurm.jobs import Job, active_jobs
from record.events import latest, read_events, record_event
from record.folder import RunFolder
from record.lock import holder
from record.state import run_state

REASON = "umbel cancel"
SECONDS = 15.0
"""How long what was killed may take to be gone."""

_POLL_SECONDS = 0.1


def find_jobs(folder: RunFolder) -> list[Job]:
    """The run's jobs that wait or work; none where it is no Slurm run, or there is no Slurm here.

    Raises:
        UmbelError: Slurm does not answer.
    """
    slurm = load(folder.run_yaml).cluster.launcher == "slurm" and has_slurm()
    return sorted(active_jobs(folder), key=lambda job: int(job.number)) if slurm else []


def check_can_end(folder: RunFolder, jobs: Sequence[Job]) -> None:
    """Refuse what is not running, or runs where this machine cannot reach it.

    Raises:
        UmbelError: says why, and what to do.
    """
    if jobs:
        return
    owner = holder(folder, "launch") or holder(folder)
    if owner is None and not processes_of(folder):
        state = run_state(folder, read_events(folder))
        fix = "its job is known to the cluster's Slurm alone: go there" if state in _ON_CLUSTER else None
        raise UmbelError(f"is not running; it is {state}", where=folder.name, fix=fix)
    if owner is not None and owner["host"] != socket.gethostname():
        raise UmbelError(
            f"runs on {owner['host']}", where=folder.name, fix=f"go there, or umbel stop {folder.handle}"
        )


_ON_CLUSTER = ("queued", "requeued")


def cancel(folder: RunFolder, jobs: Sequence[Job]) -> None:
    """End it, and write down who did. What was done since the newest checkpoint is lost.

    Raises:
        UmbelError: Slurm refuses, or a process does not end.
    """
    if jobs:
        _cancel_jobs(jobs)
    else:
        _kill(folder)
    newest = latest(read_events(folder), "checkpoint")
    reason = f"{REASON} by {getpass.getuser()}"
    record_event(folder, "stopped", step=newest["step"] if newest else 0, reason=reason)


def _cancel_jobs(jobs: Sequence[Job]) -> None:
    """Those that wait first, or the next of the chain would start."""
    waiting = [job.number for job in jobs if job.state == "PENDING"]
    working = [job.number for job in jobs if job.state != "PENDING"]
    if waiting:
        ask("scancel", *waiting)
    if working:
        _kill_in_jobs(working)
        with contextlib.suppress(UmbelError):  # they are over already
            ask("scancel", *working)


def _kill_in_jobs(numbers: Sequence[str]) -> None:
    """Workers, then the supervisors that would start them again.

    scancel of a job, SIGKILL or not, asks its processes to end and gives them time, in which workers save.
    Only to steps and to the batch script by themselves SIGKILL is passed on as it is.
    """
    listed = ask("squeue", "--steps", "--noheader", f"--jobs={','.join(numbers)}", "--format=%i")
    steps = [step for step in listed.split() if step.partition(".")[2].isdigit()]
    with contextlib.suppress(UmbelError):  # a step may have ended meanwhile
        if steps:
            ask("scancel", "--signal=KILL", *steps)
    ask("scancel", "--signal=KILL", "--batch", *numbers)


def processes_of(folder: RunFolder) -> list[psutil.Process]:
    """The run's supervisor and workers on this machine, in that order, and all that they started."""
    place, run_yaml = str(folder.path.resolve()), str(folder.run_yaml.resolve())
    supervisors, workers = [], []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "launch.supervise" in command and place in command:
            supervisors.append(process)
        elif "train.worker" in command and run_yaml in command:
            workers.append(process)
    found = [*supervisors, *workers]
    for process in [*found]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += process.children(recursive=True)
    return list(dict.fromkeys(found))


def _kill(folder: RunFolder) -> None:
    """The supervisor first: it starts workers that fall. A launcher in the foreground only stands by."""
    deadline = time.monotonic() + SECONDS
    while found := [process for process in processes_of(folder) if _lives(process)]:
        # Held still first: workers whose parent dies are told so by the kernel, and would save.
        for kind in (signal.SIGSTOP, signal.SIGKILL):
            for process in found:
                _send(process, kind, folder)
        if time.monotonic() > deadline:
            raise UmbelError(f"process {found[0].pid} does not end", where=folder.name, fix="kill it by hand")
        time.sleep(_POLL_SECONDS)
    owner = holder(folder, "launch")
    if owner is None or not psutil.pid_exists(owner["pid"]):
        return
    # A launcher that has started no supervisor yet prepares data; the other kind has heard of the end.
    launcher = psutil.Process(owner["pid"])
    with contextlib.suppress(psutil.TimeoutExpired):
        launcher.wait(1.0)
        return
    _send(launcher, signal.SIGINT, folder)
    with contextlib.suppress(psutil.TimeoutExpired):
        launcher.wait(SECONDS)
        return
    raise UmbelError(f"process {launcher.pid} does not end", where=folder.name, fix="kill it by hand")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, kind: signal.Signals, folder: RunFolder) -> None:
    try:
        process.send_signal(kind)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise UmbelError(
            f"belongs to {process.username()} (process {process.pid})",
            where=folder.name,
            fix=f"ask them, or umbel stop {folder.handle}",
        ) from error
