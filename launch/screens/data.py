"""Prepared data, batches and sequences on the screen."""

from __future__ import annotations

from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.screens.console import table
from launch.screens.numbers import short


def prepared_table(manifest: dict[str, Any]) -> Table:
    """A row per source: documents, tokens and rows of both splits."""
    numbers = ("documents", "tokens", "rows", "held-out rows")
    made = table("source", *numbers, right=numbers)
    for name, source in manifest["sources"].items():
        train, held_out = source["train"], source["held_out"]
        made.add_row(
            Text(name),
            str(train["documents"]),
            short(train["tokens"]),
            str(train["rows"]),
            str(held_out["rows"]),
        )
    return made


def cut_examples(manifest: dict[str, Any]) -> list[str]:
    """A sentence per source whose examples were longer than a row."""
    told = []
    for name, source in manifest["sources"].items():
        cut = sum(source[split]["truncated_documents"] for split in ("train", "held_out"))
        whole = sum(source[split]["documents"] for split in ("train", "held_out"))
        if cut:
            length = manifest["sequence_length"]
            told.append(f"{name}: {cut} of {whole} examples were cut to data.sequence_length={length}")
    return told


def batches_table(batches: list[dict[str, Any]]) -> Table:
    """A row per sequence, with the first ids of each."""
    made = table("step", "slot", "source", "row", "first ids", right=("step", "slot", "row"))
    for batch in batches:
        for index, ids in enumerate(batch["input_ids"]):
            made.add_row(
                str(batch["step"]),
                str(batch["first_slot"] + index),
                Text(batch["sources"][index]),
                str(batch["rows"][index]),
                " ".join(map(str, ids[:10])) + (" …" if len(ids) > 10 else ""),
            )
    return made


def sequence_panel(sequence: dict[str, Any]) -> Panel:
    """One sequence as text; of a chat, the part that is learned below it."""
    title = (
        f"slot {sequence['slot']} · {sequence['source']} row {sequence['row']} · {sequence['tokens']} tokens"
    )
    body = Text(sequence["text"])
    if sequence["learned"] is not None:
        body.append("\n\nlearned: ", style="bold")
        body.append(sequence["learned"], style="green")
    return Panel(body, title=Text(title), title_align="left", border_style="dim")
