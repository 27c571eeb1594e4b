"""Numbers as pictures of letters: a line over time, and a bar."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_LEVELS = " ▁▂▃▄▅▆▇█"


def chart(values: Sequence[float], width: int, height: int = 1, low: float | None = None) -> list[str]:
    """A row of columns, the newest value on the right, from ``low`` or the smallest value to the largest.

    Where there are more values than columns, a column is the mean of its share; lines are top first.
    """
    columns = _sampled(values, width)
    if not columns:
        return [" " * width] * height
    bottom = min(columns) if low is None else low
    columns = [max(value, bottom) for value in columns]
    span = max(columns) - bottom
    steps = 8 * height - 1
    # The lowest value still shows.
    filled = [1 + round(steps * (value - bottom) / span) if span > 0 else 4 for value in columns]
    lines = []
    for row in reversed(range(height)):
        levels = (max(0, min(8, each - 8 * row)) for each in filled)
        lines.append("".join(_LEVELS[level] for level in levels).rjust(width))
    return lines


def bar(share: float, width: int) -> str:
    """``███░░░`` for a half of six."""
    full = max(0, min(width, round(share * width)))
    return "█" * full + "░" * (width - full)


def _sampled(values: Sequence[float], width: int) -> list[float]:
    count = len(values)
    if count <= width:
        return list(values)
    edges = [number * count // width for number in range(width + 1)]
    return [sum(values[first:last]) / (last - first) for first, last in pairwise(edges)]
