"""Nodes on a terminal: which are fit, what they do, and what is wrong with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from base.files import human_bytes
from launch.screens.console import table

if TYPE_CHECKING:
    from launch.nodes.command import Looked
    from launch.nodes.facts import NodeFacts


def preflight_screen(looked: Looked, notes: list[str]) -> RenderableType:
    """A line for each node, then what is worth a word, then the sum of it."""
    return Group(_nodes(looked), *(Text(f"note: {note}") for note in notes), Text(summary(looked)))


def summary(looked: Looked) -> str:
    """``3 of 4 nodes pass, all-reduce at 21.4 GB/s (9 s)``."""
    rate = looked.survey.bandwidth
    together = f", all-reduce at {rate:.1f} GB/s" if rate is not None else ""
    one = len(looked.nodes) == 1
    return (
        f"{len(looked.passing)} of {len(looked.nodes)} {'node passes' if one else 'nodes pass'}{together} "
        f"({looked.seconds:.0f} s)"
    )


def _nodes(looked: Looked) -> Table:
    made = table("", "node", "device", "TFLOP/s", "memory free", "why not", right=("TFLOP/s", "memory free"))
    for node in looked.nodes:
        why, facts = looked.survey.failing.get(node), looked.survey.facts.get(node)
        mark = Text("✗", style="red") if why else Text("✓", style="green")
        cells = _facts(facts) if facts else ("", "", "")
        made.add_row(mark, node, *cells, Text(why or ""))
    return made


def _facts(facts: NodeFacts) -> tuple[str, str, str]:
    device = f"{len(facts.gpus)} × {facts.device}" if facts.gpus else facts.device
    slowest = f"{min(facts.rates):.3g}" if facts.rates else ""
    return device, slowest, human_bytes(facts.memory_free)
