"""Requests to a running worker, as files that any member of the run's group can make."""

from __future__ import annotations

from record.folder import RunFolder

STOP = "stop"


def request_stop(folder: RunFolder) -> None:
    """Ask the worker to save collectively at the next step boundary and to end."""
    (folder.control / STOP).touch()


def stop_requested(folder: RunFolder) -> bool:
    return (folder.control / STOP).exists()


def clear_stop(folder: RunFolder) -> None:
    """Forget a request: it was served, or a new start supersedes it."""
    (folder.control / STOP).unlink(missing_ok=True)
