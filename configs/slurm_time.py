"""Lengths of time as Slurm writes them: ``30``, ``20:00:00``, ``4-04``, ``UNLIMITED``."""

from __future__ import annotations

import re

_FORMS = (
    # In Slurm's own order: what stands alone is minutes; with days, hours come first.
    re.compile(r"(?P<minutes>\d+)"),
    re.compile(r"(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?"),
)
_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
_ENDLESS = ("infinite", "unlimited")


def slurm_seconds(text: str) -> float | None:
    """Seconds of a time limit; infinite where there is none; None for what is no length of time.

    Source: ``man sbatch``, option ``--time``.
    """
    if text.strip().lower() in _ENDLESS:
        return float("inf")
    for form in _FORMS:
        if match := form.fullmatch(text.strip()):
            return sum(_SECONDS[unit] * int(count) for unit, count in match.groupdict().items() if count)
    return None
