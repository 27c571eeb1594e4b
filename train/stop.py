"""Requests to stop: a signal to any process, or a file that anyone in the group can write."""

from __future__ import annotations

import signal
import time
from types import FrameType

from record.control import stop_requested
from record.folder import RunFolder

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
POLL_SECONDS = 0.5


class StopRequest:
    """Set by a signal or by the file; the loop all-reduces it, so all processes stop at the same step."""

    def __init__(self, folder: RunFolder, *, polls: bool) -> None:
        self.reason: str | None = None
        self._folder, self._polls, self._polled = folder, polls, 0.0
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def pending(self) -> bool:
        """Whether this process knows of a request. Looks at the file at most twice a second."""
        if self.reason is None and self._polls and time.monotonic() - self._polled > POLL_SECONDS:
            self._polled = time.monotonic()
            if stop_requested(self._folder):
                self.reason = "umbel stop"
        return self.reason is not None

    def ask(self, reason: str) -> None:
        """Stop for a reason of one's own."""
        self.reason = self.reason or reason

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
