"""How large the state is, layer by layer: what shows first that a run goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from checkpoint.format import BUFFER
from checkpoint.layers import layers_of
from checkpoint.numbers import as_float64
from checkpoint.reader import StateReader
from checkpoint.verify import MAX_READERS


class Sums(NamedTuple):
    """Of some elements: how many there are, and sum and sum of squares of those that are finite."""

    elements: int
    not_finite: int
    total: float
    squares: float

    def told(self) -> dict[str, Any]:
        """L2 norm, root mean square and mean of what is finite."""
        finite = max(1, self.elements - self.not_finite)
        return {
            "norm": math.sqrt(self.squares),
            "rms": math.sqrt(self.squares / finite),
            "mean": self.total / finite,
            "not_finite": self.not_finite,
        }


def norms(reader: StateReader, tell: Callable[[int], object] = lambda _: None) -> list[dict[str, Any]]:
    """Norms of every kind of state, layer by layer; streamed, in constant memory.

    Args:
        tell: called with the number of bytes each time some are read, from several threads.

    Returns:
        ``{"layer", "parameters", "kinds": {kind: {"norm", "rms", "mean", "not_finite"}}}`` for each layer;
        "parameters" counts elements.
    """
    tensors = [(name, kind) for name, kind in reader.tensors() if kind != BUFFER]
    with ThreadPoolExecutor(MAX_READERS) as pool:
        found = list(pool.map(lambda key: _sums(reader, key, tell), tensors))
    kinds: dict[str, dict[str, Sums]] = {}
    for (name, kind), sums in zip(tensors, found, strict=True):
        kinds.setdefault(name, {})[kind] = sums
    return [
        {
            "layer": layer,
            "parameters": sum(math.prod(reader.shape(name)) for name in names),
            "kinds": _by_kind(kinds.get(name, {}) for name in names),
        }
        for layer, names in layers_of(reader.manifest["parameters"]).items()
    ]


def _by_kind(of_names: Iterable[dict[str, Sums]]) -> dict[str, dict[str, Any]]:
    total: dict[str, Sums] = {}
    for of_name in of_names:
        for kind, sums in of_name.items():
            total[kind] = _add(total[kind], sums) if kind in total else sums
    return {kind: sums.told() for kind, sums in sorted(total.items())}


def _add(one: Sums, other: Sums) -> Sums:
    return Sums(
        one.elements + other.elements,
        one.not_finite + other.not_finite,
        one.total + other.total,
        one.squares + other.squares,
    )


def _sums(reader: StateReader, key: tuple[str, str], tell: Callable[[int], object]) -> Sums:
    found = Sums(0, 0, 0.0, 0.0)
    for raw in reader.stream(*key):
        tell(raw.nbytes)
        numbers = as_float64(raw, reader.dtype(*key))
        finite = numbers[np.isfinite(numbers)]
        odd = numbers.size - finite.size
        found = _add(found, Sums(numbers.size, odd, float(finite.sum()), float(finite @ finite)))
    return found
