"""Requests to a running worker, as files that any member of the run's group can make."""

from __future__ import annotations

from contextlib import suppress

from record.folder import RunFolder

STOP, SAVE = "stop", "save"


def request_stop(folder: RunFolder, reason: str = "umbel stop") -> None:
    """Ask the worker to save collectively at the next step boundary and to end."""
    (folder.control / STOP).write_text(reason)


def stop_reason(folder: RunFolder) -> str | None:
    """Why the worker is asked to stop; None if nobody does.

    A bare ``touch`` of the file, by whoever has nothing but a shell, says no more than its name.
    """
    try:
        return (folder.control / STOP).read_text().strip() or f"{folder.control.name}/{STOP}"
    except OSError:
        return None


def stop_requested(folder: RunFolder) -> bool:
    return (folder.control / STOP).exists()


def clear_stop(folder: RunFolder) -> None:
    """Forget a request: it was served, or a new start supersedes it."""
    (folder.control / STOP).unlink(missing_ok=True)


def request_save(folder: RunFolder) -> None:
    """Ask the worker to save after the next step, and to go on."""
    (folder.control / SAVE).touch()


def take_save_request(folder: RunFolder) -> bool:
    """Whether a save was asked for; asking again needs a new request."""
    with suppress(FileNotFoundError):
        (folder.control / SAVE).unlink()
        return True
    return False
