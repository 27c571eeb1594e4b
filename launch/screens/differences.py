"""Keys in which two configs differ."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from launch.screens.console import table


def differences_table(differences: list[tuple[str, Any, Any]]) -> Table:
    """One row per key: the value in the run folder, and the one asked for."""
    made = table("key", "in the run folder", "asked for")
    for key, old, new in differences:
        made.add_row(Text(key), _show(old), _show(new))
    return made


def _show(value: Any) -> Text:
    return Text("-" if value is None else str(value))
