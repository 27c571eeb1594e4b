"""Preparing data, as it goes: bars on a terminal, elsewhere a plain line every so often."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column
from rich.text import Text

from base.files import human_bytes
from data.report import Report, Unit
from launch.screens.console import err, say
from launch.screens.numbers import duration

EVERY = 10.0
"""Seconds between two plain lines."""

SHOWN_AFTER = 1.0
"""Work that is done by then needs no plain line."""


@contextlib.contextmanager
def preparing(console: Console = err) -> Iterator[Report]:
    """The form that fits the console, to be told of progress (`data.report`)."""
    try:
        with _form(console) as form:
            yield form
    except KeyboardInterrupt:
        say("what is prepared so far stays; the same command goes on from there")
        raise


@contextlib.contextmanager
def _form(console: Console) -> Iterator[Report]:
    if not console.is_terminal:
        yield PlainReport(console)
        return
    bars = bars_on(console)
    with bars:
        yield BarReport(bars)


def bars_on(console: Console) -> Progress:
    """Bars that go when the work is done."""
    # The bar alone gives way where the line is too long: a line that wraps cannot be erased.
    bar = BarColumn(bar_width=None, table_column=Column(max_width=40))
    told = _Told(table_column=Column(no_wrap=True))
    columns = (TextColumn("{task.description}", markup=False), bar, TaskProgressColumn(), told)
    # Parts of a source are done many seconds apart: the speed is that of minutes.
    return Progress(*columns, console=console, transient=True, speed_estimate_period=300)


class BarReport:
    """A bar for each thing that is worked on; it begins where the work was when it was first told of."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: float, total: float, unit: Unit) -> None:
        """Move the bar."""
        if what not in self._tasks:
            self._tasks[what] = self.bars.add_task(what, completed=int(done), total=total, unit=unit)
        self.bars.update(self._tasks[what], completed=done, total=total)


class _Told(ProgressColumn):
    """How much, how fast, how long still."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        speed = task.finished_speed or task.speed
        words = told(task.completed, task.total or 0, task.fields["unit"], speed, left)
        return Text(words, style="dim")


class PlainReport:
    """For files and pipes: a line every ``EVERY`` seconds, and one at the end of what took long."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began: dict[str, tuple[float, float]] = {}
        self._ended: set[str] = set()
        self._last = time.monotonic()

    def __call__(self, what: str, done: float, total: float, unit: Unit) -> None:
        """Print a line if it is time for one."""
        now = time.monotonic()
        since, at = self._began.setdefault(what, (now, done))
        is_end = done >= total and now - since > SHOWN_AFTER and what not in self._ended
        if now - self._last < EVERY and not is_end:
            return
        self._last = now
        if is_end:
            self._ended.add(what)
        speed = (done - at) / (now - since) if done > at else None
        left = (total - done) / speed if speed else None
        self.console.print(Text(f"{what}: {told(done, total, unit, speed, left)}"), soft_wrap=True)


def told(done: float, total: float, unit: Unit, speed: float | None, left: float | None) -> str:
    """``3.0 MiB of 8.0 MiB · 1.2 MiB/s · 4 s left``; ``7 of 9 shards``."""
    if unit != "bytes":
        return f"{done:.0f} of {total:.0f} {unit}"
    parts = [f"{human_bytes(done)} of {human_bytes(total)}" if done < total else human_bytes(total)]
    if speed:
        parts.append(f"{human_bytes(speed)}/s")
    if left and done < total:
        parts.append(f"{duration(left)} left")
    return " · ".join(parts)
