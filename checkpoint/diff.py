"""In what two checkpoints differ, whoever saved them: facts, and every tensor element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from checkpoint.format import DTYPE_BYTES, tensor_key
from checkpoint.numbers import as_float64
from checkpoint.reader import StateReader
from checkpoint.verify import MAX_READERS

# What is part of the state; and where it comes from, which may differ between two saves of one state.
STATE = ("step", "sequences", "tokens", "tied", "loss_scaler")
ORIGIN = (
    "run_id", "run_name", "parent", "config_fingerprint", "data_fingerprint", "topology", "software", "extra",
)  # fmt: skip


class Fact(NamedTuple):
    """A field of the manifests that differs; None where one of them lacks it."""

    name: str
    a: Any
    b: Any


class Change(NamedTuple):
    """How far a tensor of B is from that of A.

    ``differing``: elements whose bits differ; ``not_finite``: those of them that are NaN or infinite on
    either side. Of the others, ``max_abs`` is the largest absolute difference. ``relative``: L2 norm of the
    difference by L2 norm of A's; infinite where A's is 0, and where some are not finite.
    """

    tensor: str
    elements: int
    differing: int
    not_finite: int
    max_abs: float
    relative: float


class Difference(NamedTuple):
    """All in which two checkpoints differ.

    ``state`` and what concerns tensors is the state itself; ``origin`` says who saved it, and counts for
    nothing. ``reshaped``: tensors of another dtype or shape. ``changed``: the largest relative change first.
    ``tensors``: how many there are in A or B.
    """

    state: list[Fact]
    origin: list[Fact]
    only_a: list[str]
    only_b: list[str]
    reshaped: list[Fact]
    changed: list[Change]
    tensors: int

    @property
    def is_none(self) -> bool:
        """Whether both hold the same state, to the bit."""
        return not (self.state or self.only_a or self.only_b or self.reshaped or self.changed)


def diff(a: StateReader, b: StateReader, tell: Callable[[int], object] = lambda _: None) -> Difference:
    """Compare two checkpoints of any topology; streamed, in constant memory.

    Args:
        tell: called with the number of bytes each time some are compared, from several threads.

    Raises:
        Damaged: a file is not what its manifest says.
    """
    of_a, of_b = _forms(a), _forms(b)
    same = sorted(key for key in of_a.keys() & of_b.keys() if of_a[key] == of_b[key])
    with ThreadPoolExecutor(MAX_READERS) as pool:
        changes = [change for change in pool.map(lambda key: _change(a, b, key, tell), same) if change]
    return Difference(
        state=[*_facts(a, b, STATE), *_groups(a.manifest["groups"], b.manifest["groups"])],
        origin=_facts(a, b, ORIGIN),
        only_a=sorted(tensor_key(*key) for key in of_a.keys() - of_b.keys()),
        only_b=sorted(tensor_key(*key) for key in of_b.keys() - of_a.keys()),
        reshaped=sorted(
            Fact(tensor_key(*key), of_a[key], of_b[key])
            for key in of_a.keys() & of_b.keys()
            if of_a[key] != of_b[key]
        ),
        changed=sorted(changes, key=lambda change: (-change.relative, -change.max_abs, change.tensor)),
        tensors=len(of_a.keys() | of_b.keys()),
    )


def _forms(reader: StateReader) -> dict[tuple[str, str], str]:
    """``F32 [3, 4]`` by (parameter, kind)."""
    return {
        (name, kind): f"{reader.dtype(name, kind)} {list(reader.shape(name))}"
        for name, kind in reader.tensors()
    }


def _change(
    a: StateReader, b: StateReader, key: tuple[str, str], tell: Callable[[int], object]
) -> Change | None:
    """None where all bits are the same, which is found without a look at the numbers."""
    if all(np.array_equal(*both) for both in zip(a.stream(*key), b.stream(*key), strict=True)):
        tell(a.size(*key) * DTYPE_BYTES[a.dtype(*key)])
        return None
    dtype, bits = a.dtype(*key), f"u{DTYPE_BYTES[a.dtype(*key)]}"
    differing = not_finite = 0
    largest = of_difference = of_a = 0.0
    for raw_a, raw_b in zip(a.stream(*key), b.stream(*key), strict=True):
        tell(raw_a.nbytes)
        one, other = as_float64(raw_a, dtype), as_float64(raw_b, dtype)
        unequal, finite = raw_a.view(bits) != raw_b.view(bits), np.isfinite(one) & np.isfinite(other)
        one, gap = one[finite], other[finite] - one[finite]
        differing += int(unequal.sum())
        not_finite += int((unequal & ~finite).sum())
        largest = max(largest, float(np.abs(gap).max(initial=0.0)))
        of_difference += float(gap @ gap)
        of_a += float(one @ one)
    has_no_measure = not_finite or (of_difference and not of_a)
    relative = math.inf if has_no_measure else math.sqrt(of_difference / (of_a or 1.0))
    return Change(tensor_key(*key), a.size(*key), differing, not_finite, largest, relative)


def _facts(a: StateReader, b: StateReader, names: Sequence[str]) -> list[Fact]:
    of_a = _leaves({name: a.manifest[name] for name in names})
    of_b = _leaves({name: b.manifest[name] for name in names})
    return _differing(of_a, of_b)


def _differing(of_a: Mapping[str, Any], of_b: Mapping[str, Any]) -> list[Fact]:
    return [
        Fact(name, of_a.get(name), of_b.get(name))
        for name in dict.fromkeys([*of_a, *of_b])
        if of_a.get(name) != of_b.get(name)
    ]


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """``{"topology.world_size": 2, …}``: objects taken apart."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _leaves(inner, f"{name}.{key}" if name else key)
    return found


def _groups(of_a: Sequence[Mapping[str, Any]], of_b: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """Step and hyperparameters group by group; of the names, those that only one of both has there."""
    found = []
    for index, (one, other) in enumerate(zip_longest(of_a, of_b)):
        label = f"groups[{index}]"
        if one is None or other is None:
            found.append(Fact(label, _size(one), _size(other)))
            continue
        names = set(one["names"]), set(other["names"])
        if names[0] != names[1]:
            found.append(Fact(f"{label}.names", sorted(names[0] - names[1]), sorted(names[1] - names[0])))
        leaves = [_leaves({"step": g["step"], **g["hyperparameters"]}, label) for g in (one, other)]
        found += _differing(*leaves)
    return found


def _size(group: Mapping[str, Any] | None) -> str | None:
    return f"{len(group['names'])} parameters" if group else None
