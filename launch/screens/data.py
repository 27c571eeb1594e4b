"""Prepared data, batches and sequences on the screen."""

from __future__ import annotations

from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from data.card import padding_share
from launch.screens.console import table
from launch.screens.numbers import short


def prepared_table(manifest: dict[str, Any]) -> Table:
    """A row per source: documents, tokens and rows of both splits; in streaming mode what they seem to be."""
    numbers = ("documents", "tokens", "rows", "held-out rows")
    made = table("source", *numbers, right=numbers)
    for name, source in manifest["sources"].items():
        train, held_out = source["train"], source["held_out"]
        if manifest["mode"] == "streaming":
            seems = manifest["estimates"][name]
            sizes = [f"~{short(seems['documents'])}", f"~{short(seems['tokens'])}", "as it trains"]
        else:
            sizes = [str(train["documents"]), short(train["tokens"]), str(train["rows"])]
        made.add_row(Text(name), *sizes, str(held_out["rows"]))
    return made


def padding_told(manifest: dict[str, Any]) -> str | None:
    """How full rows of whole documents are; None where they have no gaps."""
    share = padding_share(manifest)
    return f"{share:.2%} of the rows is padding" if share else None


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
    """A row per sequence, with its documents and the first ids of each."""
    made = table("step", "slot", "source", "documents", "first ids", right=("step", "slot"))
    for batch in batches:
        for index, ids in enumerate(batch["input_ids"]):
            made.add_row(
                str(batch["step"]),
                str(batch["first_slot"] + index),
                Text(batch["sources"][index]),
                _some(batch["documents"][index], 4),
                _some(ids, 8),
            )
    return made


def sequence_panel(sequence: dict[str, Any]) -> Panel:
    """One sequence as text, document by document; of a chat, the part that is learned below it."""
    title = (
        f"slot {sequence['slot']} · sequence {sequence['sequence']} · number {sequence['number']} · "
        f"{sequence['source']} · {sequence['tokens']} tokens"
    )
    body = Text()
    for document in sequence["documents"]:
        where = f"{document['file']} row {document['row']}"
        body.append(f"── document {document['number']} · {where} · {document['tokens']} tokens ──\n", "cyan")
        body.append(document["text"].rstrip("\n") + "\n")
    if sequence["learned"] is not None:
        body.append("\nlearned: ", style="bold")
        body.append(sequence["learned"], style="green")
    return Panel(body, title=Text(title), title_align="left", border_style="dim")


def _some(numbers: list[int], most: int) -> str:
    """The first of some numbers."""
    return " ".join(map(str, numbers[:most])) + (" …" if len(numbers) > most else "")
