"""The progress line: live on a terminal, one plain line per log interval elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from launch.screens.numbers import ago, duration, short
from launch.status import RunStatus


class Progress(Protocol):
    """Shows a run as it goes."""

    def show(self, status: RunStatus) -> None: ...

    def note(self, text: str) -> None:
        """Print a sentence that stays."""


def progress_line(status: RunStatus) -> str:
    """What is known of: ``step 120/200 · loss 3.21 · 41k tok/s · MFU 43 % · ETA 2m10 · ckpt 3 min ago``."""
    parts = [f"step {status.step}/{status.steps}"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.3f}")
    if status.tokens_per_second:
        parts.append(f"{short(status.tokens_per_second)} tok/s")
    if status.mfu:
        parts.append(f"MFU {status.mfu * 100:.0f} %")
    if status.eta is not None:
        parts.append(f"ETA {duration(status.eta)}")
    if status.checkpoint_age is not None:
        parts.append(f"ckpt {ago(status.checkpoint_age)}")
    return " · ".join(parts)


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """The form that fits the console."""
    if not console.is_terminal:
        yield PlainProgress(console)
        return
    live = LiveProgress(console)
    with live.live:
        yield live


class PlainProgress:
    """For files and pipes: a line whenever the worker has written new metrics or entered a phase."""

    def __init__(self, console: Console) -> None:
        self.console, self.seen = console, (-1, "")

    def show(self, status: RunStatus) -> None:
        mark = (status.step, status.phase or "")
        if mark == self.seen:
            return
        self.seen = mark
        self.note(status.phase if status.phase else progress_line(status))

    def note(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


class LiveProgress:
    """For terminals: one line with a spinner that stays at the bottom."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.spinner = Spinner("dots", Text("starting"), style="cyan")
        self.live = Live(self.spinner, console=console, refresh_per_second=8, transient=True)

    def show(self, status: RunStatus) -> None:
        text = f"{status.phase}…" if status.phase else progress_line(status)
        self.spinner.update(text=Text(text, no_wrap=True, overflow="ellipsis"))

    def note(self, text: str) -> None:
        self.live.console.print(Text(text), soft_wrap=True)
