"""Runs as a table, and one run as a card."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from launch.screens.console import table
from launch.screens.numbers import ago, duration, short
from launch.status import RunStatus

_COLOURS = {
    "running": "green",
    "starting": "cyan",
    "finished": "blue",
    "stopped": "yellow",
    "interrupted": "magenta",
    "rolled back": "magenta",
    "failed": "red",
    "unreadable": "red",
}


def status_table(runs: list[RunStatus]) -> Group:
    """One row per run, fitting 80 columns, and below them why some cannot be read."""
    made = table(
        "run", "state", "step", "loss", "tok/s", "left", "checkpoint", right=("step", "loss", "tok/s", "left")
    )
    for run in runs:
        made.add_row(
            Text(run.name),
            _state(run),
            f"{run.step}/{run.steps}",
            _or_dash(run.loss, "{:.3f}"),
            short(run.tokens_per_second) if run.tokens_per_second else "-",
            duration(run.eta) if run.eta is not None else "-",
            _checkpoint(run),
        )
    faults = [Text(f"{run.name}: {run.error}") for run in runs if run.state == "unreadable"]
    return Group(made, *faults)


def status_card(run: RunStatus) -> Table:
    """All that is known of one run, a fact per line."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    where = f"{run.world_size} process{'es' if run.world_size != 1 else ''}, ZeRO stage {run.zero_stage}"
    facts: list[tuple[str, str | Text | None]] = [
        ("run", Text(run.name)),
        ("state", _state(run) + _went_back(run)),
        ("phase", run.phase),
        ("error", Text(run.error) if run.error else None),
        ("step", f"{run.step}/{run.steps}"),
        ("tokens", short(run.tokens) if run.tokens else None),
        ("loss", _or_dash(run.loss, "{:.4f}")),
        ("speed", f"{short(run.tokens_per_second)} tok/s" if run.tokens_per_second else None),
        ("MFU", f"{run.mfu * 100:.0f} %" if run.mfu else None),
        ("time left", duration(run.eta) if run.eta is not None else None),
        ("checkpoint", _checkpoint(run)),
        ("attempt", f"{run.attempt}, on {where}" if run.attempt else None),
    ]
    for name, fact in facts:
        if fact is not None:
            made.add_row(name, fact)
    return made


def _state(run: RunStatus) -> Text:
    return Text(run.state, style=_COLOURS.get(run.state, ""))


def _went_back(run: RunStatus) -> str:
    return "" if run.rolled_back_from is None else f" to {run.step} (from {run.rolled_back_from})"


def _checkpoint(run: RunStatus) -> str:
    if run.checkpoint_step is None or run.checkpoint_age is None:
        return "-"
    return f"{run.checkpoint_step}, {ago(run.checkpoint_age)}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
