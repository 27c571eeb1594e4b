"""The mixture on the screen: what each source holds and gives, with a bar for its share."""

from __future__ import annotations

from typing import Any

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launch.screens.console import table
from launch.screens.numbers import short

_WIDEST_BAR = 40


def mix_screen(mix: dict[str, Any]) -> RenderableType:
    """`launch.mix.mix_of` for people; fits 80 columns."""
    parts: list[RenderableType] = [_facts(mix), Text(), _sources(mix)]
    if len(mix["phases"]) > 1:
        parts += [Text(), Text("Share of the rows in each phase", style="bold"), _phases(mix)]
    if not all(source["is_exact"] for source in mix["sources"].values()):
        parts += [Text(), Text("~ estimated from the sizes of files; ? not known", style="dim")]
    return Group(*parts)


def _facts(mix: dict[str, Any]) -> Text:
    facts = f"{short(mix['tokens'])} tokens in {short(mix['sequences'])} sequences"
    if mix["consumed_sequences"] is not None:
        facts += f", {mix['consumed_sequences'] / mix['sequences']:.1%} of them read"
    return Text.assemble((mix["run"], "bold"), f": {facts}")


def _sources(mix: dict[str, Any]) -> Table:
    has_read = mix["consumed_sequences"] is not None
    has_caps = any(source["max_epochs"] is not None for source in mix["sources"].values())
    read = ["read", "epochs"] if has_read else []
    numbers = ["share", "holds", "plan", "epochs", *read, *(["cap"] if has_caps else [])]
    made = table("source", *numbers, "", right=tuple(numbers))
    made.expand, made.columns[-1].ratio = True, 1  # The bars take what the numbers leave.
    for column in made.columns[1:]:
        column.no_wrap = True
    largest = max(source["share"] for source in mix["sources"].values())
    for name, source in sorted(mix["sources"].items(), key=lambda item: -item[1]["share"]):
        cells = [f"{source['share']:.2%}", _size(source), *_taken(source, "planned")]
        cells += _taken(source, "consumed") if has_read else []
        cells += [_cap(source["max_epochs"])] if has_caps else []
        colour = "red" if _is_beyond(source) else "cyan"
        bar = Bar(largest, 0, source["share"], width=_WIDEST_BAR, color=colour)
        made.add_row(Text(name), *cells, bar)
    return made


def _phases(mix: dict[str, Any]) -> Table:
    starts = [f"from {short(phase['from_tokens'])}" for phase in mix["phases"]]
    made = table("source", *starts, right=tuple(starts))
    for name in mix["sources"]:
        shares = [phase["shares"].get(name) for phase in mix["phases"]]
        made.add_row(Text(name), *("-" if share is None else f"{share:.2%}" for share in shares))
    return made


def _size(source: dict[str, Any]) -> str:
    if source["tokens"] is None:
        return "?"
    return ("" if source["is_exact"] else "~") + short(source["tokens"])


def _taken(source: dict[str, Any], when: str) -> list[str]:
    taken = source[when]
    if taken is None:
        return ["-", "-"]
    return [short(taken["tokens"]), f"{taken['epochs']:.2f}" if "epochs" in taken else "?"]


def _cap(max_epochs: float | None) -> str:
    return "" if max_epochs is None else f"{max_epochs:g}"


def _is_beyond(source: dict[str, Any]) -> bool:
    epochs = (source["planned"] or {}).get("epochs")
    return epochs is not None and source["max_epochs"] is not None and epochs > source["max_epochs"]
