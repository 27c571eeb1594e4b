"""Asking Slurm from inside a job that may be ending, of a controller that may be away."""

from __future__ import annotations

import time

from base.errors import UmbelError
from launch.slurm.ask import ask

PATIENCE_SECONDS = 300.0
"""How long a job that has ended waits for a controller that does not answer."""


def ask_again(*command: str) -> str:
    """The same twice: the signals that end a job end what it is asking just then, too."""
    try:
        return ask(*command)
    except UmbelError:
        return ask(*command)


def ask_patiently(*command: str) -> str:
    """Again and again for some minutes: a controller that is restarted is no reason to end a run."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask(*command)
        except UmbelError:
            if time.monotonic() > until:
                raise
        time.sleep(PATIENCE_SECONDS / 30)
