"""Where a phase of the mixture begins."""

from __future__ import annotations

import math

from configs.schema import Phase


def phase_start(phase: Phase, sequence_length: int) -> int:
    """The first sequence that begins at or after the phase's ``from_tokens``."""
    return math.ceil(phase.from_tokens / sequence_length)
