"""A screen that is drawn anew each second until somebody leaves it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import NoReturn

from rich.console import Console
from rich.live import Live

from launch.screens.top import draw
from launch.top import Top

SECONDS = 1.0
ONE_FRAME = 60
"""Lines of a frame that goes to a file or a pipe."""

_UP, _DOWN = (b"\x1b[A", b"\x1bOA", b"k"), (b"\x1b[B", b"\x1bOB", b"j")


def watch(top: Top, console: Console) -> None:
    """Draw until q or Ctrl-C; once, where nobody looks at a terminal."""
    if not console.is_terminal:
        top.ask_slurm()
        console.print(draw(top.frame(), console.width, ONE_FRAME, footer=False))
        return
    top.ask_slurm_beside()
    live = Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop")
    with contextlib.suppress(KeyboardInterrupt), _keys() as keys, _told_to_end(), live:
        while True:
            live.update(draw(top.frame(), console.width, console.height), refresh=True)
            if not _follow(top, keys):
                return


def _follow(top: Top, keys: int | None) -> bool:
    """Wait a second, or for a key; whether to go on."""
    if keys is None:
        time.sleep(SECONDS)
        return True
    if not select.select([keys], [], [], SECONDS)[0]:
        return True
    pressed = os.read(keys, 64)
    if pressed in _UP or pressed in _DOWN:
        top.choose(-1 if pressed in _UP else 1)
    return pressed not in (b"q", b"Q", b"\x04", b"")


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Keys as they are pressed, and not shown; None where no terminal sends any."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM leaves the terminal as Ctrl-C does."""

    def leave(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
