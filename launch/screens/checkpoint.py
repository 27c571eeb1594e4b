"""A checkpoint as a card."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from base.files import human_bytes
from launch.screens.numbers import short


def checkpoint_card(facts: dict[str, Any]) -> Table:
    """`checkpoint.inspect.describe`, a fact per line."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    parameters = facts["parameters"]
    frozen = f", {short(parameters['frozen'])} frozen" if parameters["frozen"] else ""
    rows = {
        "checkpoint": facts["folder"],
        "run": facts["run_name"],
        "step": facts["step"],
        "sequences": facts["sequences"],
        "tokens": facts["tokens"],
        "parameters": f"{short(parameters['trained'])} trained{frozen}, in {parameters['tensors']} tensors",
        "size": f"{human_bytes(facts['bytes'])} in {len(facts['files'])} files",
        **{f"  {kind}": human_bytes(size) for kind, size in facts["bytes_by_kind"].items()},
        "saved from": _pairs(facts["topology"]),
        "software": _pairs(facts["software"]),
        "manifest": facts["manifest_sha256"],
        "parent": facts["parent"] or "none",
    }
    for name, fact in rows.items():
        made.add_row(name, Text(str(fact)))
    return made


def _pairs(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
