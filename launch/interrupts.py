"""Signals that are counted in place of being died of."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interrupts:
    """While entered, notes these signals. ``received`` holds their numbers, oldest first."""

    def __init__(self, *kinds: signal.Signals) -> None:
        self.kinds = kinds or (signal.SIGINT, signal.SIGTERM)
        self.received: list[int] = []

    def __enter__(self) -> Interrupts:
        self.before = {kind: signal.signal(kind, self._receive) for kind in self.kinds}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)

    @property
    def exit_code(self) -> int:
        """128 + the first signal, as shells count; 0 without any."""
        return 128 + self.received[0] if self.received else 0
