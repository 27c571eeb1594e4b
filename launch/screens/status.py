"""Runs as a table, and one run as a card."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from launch.goodput import Goodput
from launch.progress import progress_line
from launch.screens.console import table
from launch.screens.numbers import ago, duration, percent, short
from launch.status import RunStatus
from record.state import WAITING, WORKING

Fact = tuple[str, str | Text | None]

COLOURS = {
    "running": "green",
    "starting": "cyan",
    "queued": "cyan",
    "requeued": "cyan",
    "finished": "blue",
    "stopped": "yellow",
    "interrupted": "magenta",
    "rolled back": "magenta",
    "failed": "red",
    "unreadable": "red",
}
_ORDINARY = ("finished", "stopped by umbel stop")
"""Ends of which the state says enough."""

TELLING_SHARE = 0.001
"""Smaller losses are not listed."""


def status_table(runs: list[RunStatus]) -> Group:
    """One row per run, fitting 80 columns; below them why they wait, and how they ended."""
    made = table(
        "run", "state", "step", "loss", "tok/s", "left", "checkpoint", right=("step", "loss", "tok/s", "left")
    )
    for run in runs:
        made.add_row(
            Text(run.name),
            state(run),
            f"{run.step}/{run.steps}",
            _or_dash(run.loss, "{:.3f}"),
            short(run.tokens_per_second) if run.tokens_per_second else "-",
            duration(run.eta) if run.eta is not None else "-",
            _checkpoint(run),
        )
    notes = [(run.name, note) for run in runs if (note := _note(run))]
    return Group(made, *(Text(f"{name}: {note}") for name, note in notes))


def status_card(run: RunStatus) -> Table:
    """All that is known of one run, a fact per line."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    facts: list[Fact] = [
        ("run", Text(run.name)),
        ("state", state(run) + _went_back(run) + _on(run)),
        ("waits", waits(run)),
        ("phase", run.phase),
        ("asked to end", run.asked_to_stop and Text(run.asked_to_stop)),
        ("error" if run.state == "failed" else "last end", _end(run)),
        *([("now", Text(status_line(run)))] if run.state == "running" else _reached(run)),
        ("tokens", short(run.tokens) if run.tokens else None),
        ("attempt", f"{run.attempt}, on {_where(run)}" if run.attempt else None),
        ("job", _job(run)),
        *_goodput(run.goodput),
        *(("alert", Text(text)) for text in run.alerts),
    ]
    for name, fact in facts:
        if fact:
            made.add_row(name, fact)
    return made


def _reached(run: RunStatus) -> list[Fact]:
    """Of a run that makes no steps now."""
    return [
        ("step", f"{run.step}/{run.steps}"),
        ("loss", _or_dash(run.loss, "{:.4f}")),
        ("speed", f"{short(run.tokens_per_second)} tok/s" if run.tokens_per_second else None),
        ("MFU", f"{run.mfu * 100:.0f} %" if run.mfu else None),
        ("checkpoint", _checkpoint(run)),
    ]


def status_line(run: RunStatus) -> str:
    """``step 1200/5000 · loss 2.31 · … · walltime left 2h10 · slowest node-17 +9 %``."""
    parts = [progress_line(run)]
    if run.walltime_left is not None:
        parts.append(f"walltime left {duration(run.walltime_left)}")
    if run.slowest is not None:
        who = run.slowest.node if (run.nodes or 1) > 1 else f"rank {run.slowest.rank}"
        parts.append(f"slowest {who} +{run.slowest.share * 100:.0f} %")
    return " · ".join(parts)


def state(run: RunStatus) -> Text:
    return Text(run.state, style=COLOURS.get(run.state, ""))


def waits(run: RunStatus) -> str | None:
    """``place 3 in the queue · starts in about 2h10 · waits for free nodes``."""
    if run.state not in WAITING:
        return None
    parts = [
        f"job {run.job}" if run.job else None,
        f"place {run.queue_position} in the queue" if run.queue_position else None,
        f"starts in about {duration(run.expected_start)}" if run.expected_start is not None else None,
        run.waiting_for,
    ]
    return " · ".join(filter(None, parts)) or None


def _note(run: RunStatus) -> str | None:
    if run.state == "unreadable":
        return run.error
    if run.state in WAITING:
        return waits(run)
    if run.state in ("running", "starting") or run.ended in _ORDINARY:
        return None
    return run.ended


def _end(run: RunStatus) -> Text | None:
    return Text(run.ended or run.error or "") if run.ended not in _ORDINARY else None


def _where(run: RunStatus) -> str:
    processes = f"{run.world_size} process{'es' if run.world_size != 1 else ''}"
    return f"{processes}, ZeRO stage {run.zero_stage}"


def _job(run: RunStatus) -> str | None:
    if run.job is None or run.state in WAITING:
        return None
    left = f", walltime left {duration(run.walltime_left)}" if run.walltime_left is not None else ""
    return f"{run.job}{left}"


def _goodput(found: Goodput | None) -> list[Fact]:
    """Three lines: the share, the causes of what was lost by size, and the steps."""
    if found is None or not found.executed_steps:
        return []
    lost = sorted(found.lost.items(), key=lambda each: -each[1])
    told = [
        f"{cause} {duration(seconds)} ({percent(seconds / found.seconds)})"
        for cause, seconds in lost
        if seconds >= max(0.5, found.seconds * TELLING_SHARE)
    ]
    return [
        ("goodput", f"{percent(found.share)} of {duration(found.seconds)} went into useful steps"),
        ("lost to", ", ".join(told) or None),
        ("useful", f"{found.useful_steps} of {found.executed_steps} steps ({percent(found.step_share)})"),
    ]


def _on(run: RunStatus) -> str:
    return f" on {run.nodes} nodes" if run.state in WORKING and (run.nodes or 1) > 1 else ""


def _went_back(run: RunStatus) -> str:
    return "" if run.rolled_back_from is None else f" to {run.step} (from {run.rolled_back_from})"


def _checkpoint(run: RunStatus) -> str:
    if run.checkpoint_step is None or run.checkpoint_age is None:
        return "-"
    return f"{run.checkpoint_step}, {ago(run.checkpoint_age)}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
