"""Requests to stop, or to save: a signal to any process, or a file that anyone in the group can write."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Generic, TypeVar

from record.control import stop_reason, take_save_request
from record.folder import RunFolder
from train.distributed import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
POLL_SECONDS = 0.5

T = TypeVar("T")


class Polled(Generic[T]):
    """Asks a file system at most twice a second; None in between."""

    def __init__(self, ask: Callable[[], T | None]) -> None:
        self._ask, self._asked = ask, 0.0

    def __call__(self) -> T | None:
        if time.monotonic() - self._asked < POLL_SECONDS:
            return None
        self._asked = time.monotonic()
        return self._ask()


class StopRequest:
    """Set by a signal or by the file; the loop all-reduces it, so all processes stop at the same step.

    Attributes:
        reason: the first one this process heard of: a signal's name, or what stands in the file.
    """

    def __init__(self, folder: RunFolder, *, polls: bool) -> None:
        self.reason: str | None = None
        self._file = Polled(partial(stop_reason, folder)) if polls else None
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def pending(self) -> bool:
        """Whether this process knows of a request. Looks at the file at most twice a second."""
        if self.reason is None and self._file is not None:
            self.reason = self._file()
        return self.reason is not None

    def agreed(self, world: World) -> bool:
        """Whether any process knows of one. Collective."""
        return world.sum([self.pending()])[0] > 0

    def ask(self, reason: str) -> None:
        """Stop for a reason of one's own."""
        self.reason = self.reason or reason

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name


def save_requests(folder: RunFolder) -> Callable[[], bool]:
    """Whether somebody asked for a save since the last time, in a form that may be asked at every step."""
    asked = Polled(lambda: take_save_request(folder) or None)
    return lambda: asked() is not None
