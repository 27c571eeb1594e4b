"""What verifying found, and in what two checkpoints differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from base.files import human_bytes
from checkpoint.diff import Difference, Fact
from checkpoint.format import shown
from launch.screens.checkpoint import card
from launch.screens.console import table

SHOWN = 20
"""Rows of a table of tensors; --json has all."""


def verified_card(found: dict[str, Any]) -> Table:
    """What was checked, and how long it took; `launch.trust.verified`."""
    speed = f", {human_bytes(found['bytes_per_second'])}/s" if found["hashed"] else ""
    return card(
        {
            found["folder"]: f"ok: step {found['step']} of {found['run_name']}",
            "checked": _checked(found),
            "took": f"{found['seconds']:.2f} s{speed}",
            "identity": found["manifest_sha256"],
        }
    )


def verified_table(found: Sequence[dict[str, Any]]) -> Table:
    """A checkpoint per line."""
    made = table("checkpoint", "", "size", "what", right=("size",))
    for each in found:
        if each["ok"]:
            size, identity = human_bytes(each["bytes"]), f"identity {each['manifest_sha256'][:12]}"
            made.add_row(each["folder"], Text("ok", "green"), size, identity)
        else:
            error = each["error"].rpartition(f"{each['folder']}/")[2]
            made.add_row(each["folder"], Text("refused", "red"), "", Text(error))
    return made


def _checked(found: dict[str, Any]) -> str:
    parts = [f"manifest, {found['files']} files' sizes and headers"]
    if found["mode"] != "sizes":
        parts.append(f"sha256 of {human_bytes(found['hashed'])}")
    if found["mode"] == "finite":
        parts.append("no float is NaN or infinite")
    return ", ".join(parts)


def difference_screen(found: Difference) -> Iterator[RenderableType]:
    """Facts, tensors, and a line that sums up."""
    facts = [*found.state, *found.origin]
    if facts:
        yield _facts_table("fact", facts)
    lone = [Fact(name, "there", "-") for name in found.only_a] + [
        Fact(name, "-", "there") for name in found.only_b
    ]
    if lone or found.reshaped:
        yield _facts_table("tensor", [*lone, *found.reshaped][:SHOWN])
    if found.changed:
        yield _changes_table(found)
    yield Text(summary(found))


def summary(found: Difference) -> str:
    """``12 of 148 tensors differ; the largest relative change is 1.2e-03, of 'h.0.bias|master'``."""
    if found.is_none:
        where = "; who saved it differs" if found.origin else ""
        return f"the same state: all {found.tensors} tensors are equal to the bit{where}"
    differing = len(found.changed) + len(found.only_a) + len(found.only_b) + len(found.reshaped)
    parts = [f"{differing} of {found.tensors} tensors differ"]
    if found.changed:
        largest = found.changed[0]
        parts.append(f"the largest relative change is {_number(largest.relative)}, of '{largest.tensor}'")
    return "; ".join(parts)


def difference_json(found: Difference) -> dict[str, Any]:
    """All of it as plain data; what is infinite becomes null."""
    plain: dict[str, Any] = {"equal": found.is_none, "tensors": found.tensors, "summary": summary(found)}
    for name in ("state", "origin", "reshaped", "changed"):
        plain[name] = [_plain(each._asdict()) for each in getattr(found, name)]
    return plain | {"only_a": found.only_a, "only_b": found.only_b}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(one, float) and not math.isfinite(one) else one for key, one in row.items()
    }


def _facts_table(title: str, facts: Sequence[Fact]) -> Table:
    made = table(title, "A", "B")
    for fact in facts:
        made.add_row(Text(shown(fact.name, 600)), Text(_fact(fact.a)), Text(_fact(fact.b)))
    return made


def _fact(value: Any) -> str:
    if value is None:
        return "-"
    return shown(value if isinstance(value, str) else json.dumps(value), 70)


def _changes_table(found: Difference) -> Table:
    columns = ("relative L2", "max abs", "differing")
    made = table("tensor", *columns, right=columns)
    made.columns[0].no_wrap = True
    for change in found.changed[:SHOWN]:
        count = f"{change.differing} of {change.elements}"
        made.add_row(Text(change.tensor), _number(change.relative), _number(change.max_abs), count)
    if len(found.changed) > SHOWN:
        made.add_row(Text(f"… {len(found.changed) - SHOWN} more: --json has all", "dim"), "", "", "")
    return made


def _number(value: float) -> str:
    return f"{value:.3g}"
