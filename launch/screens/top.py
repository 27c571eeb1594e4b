"""Drawing a frame of `umbel top` so that it fits a terminal of any size."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launch.screens.charts import bar, chart
from launch.screens.numbers import duration, percent, short
from launch.screens.status import state, status_line, waits
from launch.status import RunStatus
from launch.top import Frame, NodeRow, Told

KEYS = "q leaves · ↑ ↓ choose a run"
_FEWEST = 4
"""Lines of a table of nodes that shows one of several."""

_LEVELS = {"note": "", "alert": "yellow", "bad": "red"}
_ROOMY = 44
"""Columns of a chart above which there is room for more than its ends."""

_HOT = 85.0
_LATE = 10.0
"""°C of a device and seconds of a report that are worth a colour."""


def draw(frame: Frame, width: int, height: int, footer: bool = True) -> RenderableType:
    """At most ``height`` lines of ``width`` columns."""
    if not frame.runs:
        return Text("no runs in runs/; start one: umbel launch experiment=demo")
    room = height - (1 if footer else 0)
    shown = max(1, min(len(frame.runs), room // 4))
    tall = max(1, min(6, (room - shown - 12) // 3))
    about = _chosen(frame, width)
    parts: list[RenderableType] = [_runs(frame, shown), Text(), *about]
    left = room - shown - 2 - len(about)
    if frame.losses and left > tall:
        parts.append(_charts(frame, width, tall))
        left -= tall + 1
    if frame.nodes and left >= _FEWEST:
        rows = min(len(frame.nodes), (left - _FEWEST) // 2 + 1)
        parts += [Text(), _nodes(frame.nodes, rows, width)]
        left -= 2 + rows + (len(frame.nodes) > rows)
    if frame.events and left > 1:
        last = frame.events[-(left - 1) :]
        parts += [Text(), *(_event(told, width) for told in last)]
        left -= 1 + len(last)
    if footer:
        parts += [Text() for _ in range(left)]
        parts.append(Text(KEYS, style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _runs(frame: Frame, shown: int) -> Table:
    """So many of the runs, the chosen one among them."""
    first = max(0, min(frame.chosen - shown // 2, len(frame.runs) - shown))
    made = _table("run", "state", "step", "loss", "tok/s", "MFU", "left", right=2)
    for number, run in enumerate(frame.runs[first : first + shown], first):
        several, is_chosen = len(frame.runs) > 1, number == frame.chosen
        mark = "" if not several else "▸ " if is_chosen else "  "
        style = "bold" if several and is_chosen else ""
        made.add_row(Text(f"{mark}{run.name}"), state(run), *_figures(run), style=style)
    return made


def _figures(run: RunStatus) -> Sequence[str]:
    return (
        f"{run.step}/{run.steps}",
        f"{run.loss:.3f}" if run.loss is not None else "-",
        short(run.tokens_per_second) if run.tokens_per_second else "-",
        f"{run.mfu * 100:.0f} %" if run.mfu else "-",
        duration(run.eta) if run.eta is not None else "-",
    )


def _chosen(frame: Frame, width: int) -> list[Text]:
    """What is told of the run that is shown closely, in as many lines as it needs."""
    run = frame.runs[frame.chosen]
    if run.phase and run.state in ("starting", "running"):
        told = f"{run.phase}…"
    elif run.state == "running":
        told = status_line(run)
    else:
        told = waits(run) or run.ended or run.error or run.state
    lines = [run.name]
    for part in told.split(" · "):
        joined = lines[-1] + ("  " if lines[-1] == run.name else " · ") + part
        if len(joined) <= width or lines[-1] == run.name:
            lines[-1] = joined
        else:
            lines.append(" " * (len(run.name) + 2) + part)
    found = [_cut(Text(line), width) for line in lines]
    found[0].stylize("bold", 0, len(run.name))
    return found


def _charts(frame: Frame, width: int, tall: int) -> Table:
    """Loss and speed, side by side."""
    made = Table.grid(padding=(0, 2, 0, 0), expand=False)
    each = (width - 4) // 2
    cells = []
    for title, values, form, low in (
        ("loss", frame.losses, lambda value: f"{value:.3f}", None),
        ("tok/s", frame.rates, short, 0.0),
    ):
        head = Text(title, style="dim")
        if values:
            head.append(f"  {form(values[0])} → {form(values[-1])}")
            if title == "tok/s" and frame.step_seconds:
                head.append(f"  {frame.step_seconds:.3g} s a step")
            if each >= _ROOMY:
                head.append(f"  min {form(min(values))}, max {form(max(values))}")
        colour = "green" if title == "loss" else "cyan"
        lines = [Text(line, style=colour, no_wrap=True) for line in chart(values, each, tall, low)]
        cells.append(Group(_cut(head, each), *lines))
        made.add_column(width=each)
    made.add_row(*cells)
    return made


def _nodes(nodes: Sequence[NodeRow], rows: int, width: int) -> RenderableType:
    """One line a node; where not all have room, the slowest."""
    wide = max(4, min(20, (width - 62) // 2))
    made = _table("node", "ranks", "at", "lag", "memory", "GPU", "load", "heard", right=6)
    most = max(0.05, *(node.lag for node in nodes))
    listed = sorted(nodes, key=lambda node: -node.lag)[:rows] if len(nodes) > rows else nodes
    for node in listed:
        made.add_row(
            Text(node.node),
            str(node.ranks),
            node.at,
            Text(f"{bar(node.lag / most, wide)} {percent(node.lag):>6}", style=_colour(node.lag >= 0.05)),
            "-" if node.memory is None else f"{bar(node.memory, wide)} {node.memory * 100:3.0f} %",
            Text("-")
            if node.temperature is None
            else Text(f"{node.temperature:.0f} °C", style=_colour(node.temperature >= _HOT)),
            "-" if node.load is None else f"{node.load:.1f}",
            Text(f"{node.age:.0f} s", style=_colour(node.age >= _LATE)),
        )
    more = len(nodes) - len(listed)
    return Group(made, Text(f"and {more} more", style="dim")) if more else made


def _event(told: Told, width: int) -> Text:
    clock = datetime.fromisoformat(told.time).astimezone().strftime("%H:%M:%S")
    return _cut(Text.assemble((clock, "dim"), "  ", (told.text, _LEVELS[told.level])), width)


def _colour(bad: bool) -> str:
    return "yellow" if bad else ""


def _cut(text: Text, width: int) -> Text:
    """One line of it."""
    text.no_wrap, text.overflow = True, "ellipsis"
    text.truncate(width, overflow="ellipsis")
    return text


def _table(*columns: str, right: int) -> Table:
    """Without a frame; columns from number ``right`` on are aligned to the right."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        made.add_column(
            column, justify="right" if number >= right else "left", no_wrap=True, overflow="ellipsis"
        )
    return made
