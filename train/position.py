"""Where a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """Where a run is: all of its state that is not a tensor."""

    step: int = 0
    sequences: int = 0
    tokens: int = 0  # target tokens learned from

    def after(self, sequences: int, tokens: int) -> Position:
        """One step later."""
        return Position(self.step + 1, self.sequences + sequences, self.tokens + tokens)
