"""The two consoles, and the few ways in which every command speaks."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A plain sentence about what happens now; goes to stderr, so that stdout stays clean for results."""
    err.print(Text(text), soft_wrap=True)


def warn(text: str) -> None:
    err.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)


def print_json(value: Any) -> None:
    """The whole answer as one JSON document on stdout."""
    print(json.dumps(value, indent=2, default=str))


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without a frame; columns named in ``right`` are aligned to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made
