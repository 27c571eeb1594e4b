"""How work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Unit = Literal["bytes", "shards", "sources"]

Report = Callable[[str, float, float, Unit], None]
"""Told (what, done, total, unit), again and again: ``what`` is a source's name, or the work's."""


def silent(what: str, done: float, total: float, unit: Unit) -> None:
    """For whoever does not want to know."""
