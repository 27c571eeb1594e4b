"""What a checkpoint holds: a card, its optimizer groups, and the norms of its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from base.files import human_bytes
from checkpoint.format import FROZEN, MASTER, shown
from launch.screens.console import table
from launch.screens.numbers import short


def checkpoint_card(facts: dict[str, Any]) -> Table:
    """`checkpoint.inspect.describe`, a fact per line."""
    parameters = facts["parameters"]
    frozen = f", {short(parameters['frozen'])} frozen" if parameters["frozen"] else ""
    trained = f"{short(parameters['trained'])} trained{frozen}"
    ties = [f"{other} = {name}" for other, name in facts["tied"].items()]
    return card(
        {
            "checkpoint": facts["folder"],
            "run": facts["run_name"],
            "step": facts["step"],
            "sequences": facts["sequences"],
            "tokens": facts["tokens"],
            "parameters": f"{trained}, in {parameters['tensors']} tensors",
            **({"tied": ", ".join(ties)} if ties else {}),
            "size": f"{human_bytes(facts['bytes'])} in {len(facts['files'])} files",
            **{f"  {kind}": human_bytes(size) for kind, size in facts["bytes_by_kind"].items()},
            "saved from": pairs(facts["topology"]),
            "software": pairs(facts["software"]),
            **({"loss scaler": pairs(facts["loss_scaler"])} if facts["loss_scaler"] else {}),
            "identity": facts["manifest_sha256"],
            "parent": facts["parent"] or "none",
        }
    )


def card(rows: Mapping[str, Any]) -> Table:
    """A name and a fact per line."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, fact in rows.items():
        made.add_row(Text(name), Text(shown(str(fact), 10_000)))
    return made


def pairs(facts: Mapping[str, Any]) -> str:
    """``world_size 2, zero_stage 1``."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def groups_table(groups: Sequence[dict[str, Any]]) -> Table:
    """Optimizer groups: how much, how far, by which settings."""
    made = table(
        "group", "tensors", "parameters", "step", "settings", right=("tensors", "parameters", "step")
    )
    for index, group in enumerate(groups):
        settings = shown(pairs(group["hyperparameters"]), 1000)
        count = short(group["parameters"])
        made.add_row(str(index), str(group["names"]), count, str(group["step"]), Text(settings))
    return made


def norms_table(layers: Sequence[dict[str, Any]]) -> Table:
    """`checkpoint.norms.norms`: L2 norm of weights, RMS of first moments, mean of second ones, by layer."""
    kinds = sorted(
        {kind for layer in layers for kind in layer["kinds"]}, key=lambda kind: (kind != MASTER, kind)
    )
    odd = any(of_kind["not_finite"] for layer in layers for of_kind in layer["kinds"].values())
    columns = [_column(kind) for kind in kinds] + (["NaN,\ninfinite"] if odd else [])
    made = table("layer", "parameters", *columns, right=("parameters", *columns))
    for column in made.columns[1:]:
        column.no_wrap = True
    for layer in layers:
        cells = [_cell(kind, layer["kinds"].get(kind)) for kind in kinds]
        count = sum(of_kind["not_finite"] for of_kind in layer["kinds"].values())
        cells += [Text(str(count) if count else "", "red")] if odd else []
        made.add_row(Text(layer["layer"]), short(layer["parameters"]), *cells)
    totals = [_total(kind, layers) for kind in kinds]
    made.add_row("all", short(sum(layer["parameters"] for layer in layers)), *totals, style="bold")
    return made


def _column(kind: str) -> str:
    measures = {MASTER: "weights\nL2 norm", FROZEN: "frozen\nL2 norm", "exp_avg_sq": "exp_avg_sq\nmean"}
    return measures.get(kind, f"{kind}\nRMS")


def _cell(kind: str, found: dict[str, Any] | None) -> Text:
    if found is None:
        return Text("-", "dim")
    which = {MASTER: "norm", FROZEN: "norm", "exp_avg_sq": "mean"}.get(kind, "rms")
    return Text(f"{found[which]:.3g}")


def _total(kind: str, layers: Sequence[dict[str, Any]]) -> Text:
    """The L2 norm over all layers, where a column shows one."""
    if kind not in (MASTER, FROZEN):
        return Text("")
    norms = [layer["kinds"][kind]["norm"] for layer in layers if kind in layer["kinds"]]
    return Text(f"{math.hypot(*norms):.3g}")
