"""Reading much, as it goes: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from launch.screens.console import err
from launch.screens.preparing import bars_on

SHOWN_FROM = 256 << 20
"""Bytes. Less is read before anybody has seen a bar."""


@contextmanager
def reading(what: str, total: int, console: Console = err) -> Iterator[Callable[[int], None]]:
    """A function to be told, from any thread, of every number of bytes that was read."""
    if not console.is_terminal or total < SHOWN_FROM:
        yield lambda _: None
        return
    with bars_on(console) as bars:
        task = bars.add_task(what, total=total, unit="bytes")
        yield lambda count: bars.advance(task, count)
