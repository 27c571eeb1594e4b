"""What a rollback does, and what became of it."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from base.files import human_bytes
from launch.rollback import Rollback
from launch.screens.numbers import short
from record.folder import RunFolder


def rollback_card(folder: RunFolder, rollback: Rollback) -> Table:
    """What it will do, a fact per line."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    rows = {
        "run": folder.name,
        "from step": str(rollback.origin),
        "to step": str(rollback.to),
        "given up": _given_up(rollback),
        "set aside": _set_aside(rollback),
        "data skipped": _skipped(rollback),
    }
    for name, fact in rows.items():
        made.add_row(name, Text(fact))
    return made


def aside_told(rollback: Rollback) -> list[str]:
    """Where the checkpoints beyond lie now, what they hold, and how they are deleted."""
    if not rollback.beyond:
        return []
    held = human_bytes(sum(rollback.beyond.values()))
    return [
        f"the checkpoints beyond are set aside, {held}; nothing reads them any more. To delete them:",
        f"  rm -r {rollback.aside}",
    ]


def _given_up(rollback: Rollback) -> str:
    steps = rollback.origin - rollback.to
    tokens = "" if rollback.tokens is None else f", {short(rollback.tokens)} tokens"
    return f"{steps} step{'s' if steps != 1 else ''}{tokens}" if steps else "nothing"


def _set_aside(rollback: Rollback) -> str:
    sizes = [f"{path.name} ({human_bytes(size)})" for path, size in reversed(rollback.beyond.items())]
    return ", ".join(sizes) or "no checkpoint"


def _skipped(rollback: Rollback) -> str:
    if rollback.skip is None:
        return "none: the same batches come again"
    first, end = rollback.skip
    return f"numbers {first} to {end - 1} of the global order, {end - first} sequences"
