"""Which parameters make a layer, told from their names alone, for any architecture."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_INPUT = re.compile(r"emb|wte|wpe|tok", re.IGNORECASE)


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of parameters by layer, in the order of a model: what embeds, the blocks, the rest.

    A block is a numbered module: ``transformer.h.3.attn.weight`` is of ``transformer.h.3``. The outermost
    number that takes several values counts, so experts stay with their block. A name without one belongs to
    its module: ``lm_head.weight`` to ``lm_head``.
    """
    names = list(names)
    several = _stems_of_several(names)
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(_layer(name, several), []).append(name)
    return {layer: layers[layer] for layer in sorted(layers, key=_place)}


def _numbered(name: str) -> list[tuple[str, str]]:
    """[("transformer.h.", "3")] of ``transformer.h.3.attn.weight``; the outermost number first."""
    return [(name[: match.start()], match[0]) for match in re.finditer(r"(?<![^.])\d+(?=\.)", name)]


def _stems_of_several(names: Iterable[str]) -> set[str]:
    numbers: dict[str, set[str]] = {}
    for name in names:
        for stem, number in _numbered(name):
            numbers.setdefault(stem, set()).add(number)
    return {stem for stem, found in numbers.items() if len(found) > 1}


def _layer(name: str, several: set[str]) -> str:
    numbered = _numbered(name)
    stem, number = next((each for each in numbered if each[0] in several), (numbered or [("", "")])[0])
    return stem + number or name.rpartition(".")[0] or name


def _place(layer: str) -> tuple[Any, ...]:
    """Blocks in the order of their numbers, 2 before 10."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in layer.split(".")]
    is_block = any(number >= 0 for number, _ in parts)
    return (1 if is_block else 0 if _INPUT.search(layer) else 2, parts)
