"""Asking a run to end, wherever it is: at work, or still in a queue."""

from __future__ import annotations

from base.errors import UmbelError
from launch.cancel import find_jobs
from launch.slurm.ask import ask
from record.control import request_stop
from record.events import latest, read_events, record_event
from record.folder import RunFolder
from record.state import WORKING, run_state

REASON = "umbel stop"


def ask_to_end(folder: RunFolder) -> tuple[bool, list[str]]:
    """Ask the workers to save and end, and take out of the queue what waits to go on with the run.

    Returns whether somebody works on it, and the jobs that were taken out.

    Raises:
        UmbelError: Slurm refuses.
    """
    waiting, working = _jobs(folder)
    works = working or run_state(folder, read_events(folder)) in WORKING
    if works:
        request_stop(folder, REASON)
    for job in waiting:
        _cancel(job)
    if waiting and not works:
        newest = latest(read_events(folder), "checkpoint")
        record_event(folder, "stopped", step=newest["step"] if newest else 0, reason=REASON)
    return works, waiting


def _jobs(folder: RunFolder) -> tuple[list[str], bool]:
    """The run's jobs that wait, and whether one of them runs."""
    found = find_jobs(folder)
    waiting = {job.number for job in found if job.state == "PENDING"}
    return sorted(waiting), any(job.state != "PENDING" for job in found)


def _cancel(job: str) -> None:
    try:
        ask("scancel", "--state=PENDING", job)
    except UmbelError as error:
        raise UmbelError(f"cannot be taken out of the queue ({error})", where=f"job {job}") from error
