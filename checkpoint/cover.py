"""Does a set of fragments hold the whole state: every element of every tensor once, none twice?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from checkpoint.format import BUFFER, FROZEN, MASTER, shown, split_key
from checkpoint.fragment import Extent


class Piece(NamedTuple):
    """One fragment and the file it lies in."""

    extent: Extent
    file: str


Pieces = dict[tuple[str, str], list[Piece]]


def pieces(files: Sequence[Mapping[str, Any]]) -> Pieces:
    """All fragments of the files of a manifest, by (parameter, kind), sorted by their start."""
    found: Pieces = {}
    for file in files:
        for key, one in file["fragments"].items():
            extent = Extent(one["dtype"], tuple(one["offsets"]), tuple(one["shape"]))
            found.setdefault(split_key(key), []).append(Piece(extent, file["name"]))
    for stored in found.values():
        stored.sort(key=lambda piece: (piece.extent.start, piece.extent.stop))
    return found


def check_cover(
    found: Pieces, parameters: Mapping[str, Sequence[int]], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Check that the pieces are exactly the state that parameters and optimizer groups speak of.

    A parameter named by a group is trained: each kind that its group keeps covers it. Every other one is
    frozen, and covered too. Buffers are whole.

    Raises:
        ValueError: a gap, an overlap, or a tensor nobody speaks of; says which.
    """
    trained = _trained(parameters, groups)
    for (name, kind), stored in found.items():
        if kind == BUFFER:
            _check_buffer(name, stored, parameters)
        elif kind == FROZEN:
            _check_frozen(name, parameters, trained)
        elif name not in trained:
            raise ValueError(f"'{name}' has a fragment of kind '{kind}' but is in no optimizer group")
    for name in sorted(set(parameters) - trained):
        stored, numel = found.get((name, FROZEN), []), math.prod(parameters[name])
        if numel and not stored:
            raise ValueError(f"'{name}' is in no optimizer group and not saved as frozen")
        _check_slices(f"{name}|{FROZEN}", stored, numel)
    for group in groups:
        _check_group(found, parameters, group["names"])


def _trained(parameters: Mapping[str, Sequence[int]], groups: Sequence[Mapping[str, Any]]) -> set[str]:
    names = [name for group in groups for name in group["names"]]
    if len(names) != len(set(names)):
        raise ValueError(f"'{shown(Counter(names).most_common(1)[0][0])}' is in two optimizer groups")
    if unknown := set(names) - set(parameters):
        raise ValueError(f"'{shown(min(unknown))}' is in an optimizer group but is no parameter")
    return set(names)


def _check_group(found: Pieces, parameters: Mapping[str, Sequence[int]], names: Sequence[str]) -> None:
    members = set(names)
    kinds = {kind for name, kind in found if name in members and kind not in (FROZEN, BUFFER)} | {MASTER}
    for name in names:
        for kind in sorted(kinds):
            _check_slices(f"{name}|{kind}", found.get((name, kind), []), math.prod(parameters[name]))


def _check_slices(key: str, stored: Sequence[Piece], numel: int) -> None:
    """Sorted ranges must follow one another from 0 to ``numel``, in one dtype."""
    cursor = 0
    for extent, file in stored:
        if len(extent.shape) != 1 or extent.dtype != stored[0].extent.dtype:
            raise ValueError(f"'{key}' in {file} is not a flat range of dtype {stored[0].extent.dtype}")
        if extent.start < cursor:
            raise ValueError(
                f"elements {extent.start} to {min(cursor, extent.stop)} of '{key}' are saved twice"
            )
        if extent.start > cursor:
            raise ValueError(f"elements {cursor} to {extent.start} of '{key}' are not saved")
        cursor = extent.stop
    if cursor < numel:
        raise ValueError(f"elements {cursor} to {numel} of '{key}' are not saved")
    if cursor > numel:
        raise ValueError(f"'{key}' is saved with {cursor} elements and has {numel}")


def _check_frozen(name: str, parameters: Mapping[str, Sequence[int]], trained: set[str]) -> None:
    if name in trained:
        raise ValueError(f"'{name}' is in an optimizer group but saved as frozen")
    if name not in parameters:
        raise ValueError(f"'{name}' is saved as frozen but is no parameter")


def _check_buffer(name: str, stored: Sequence[Piece], parameters: Mapping[str, Sequence[int]]) -> None:
    _only(name, stored)
    if name in parameters:
        raise ValueError(f"'{name}' is a parameter but saved as a buffer")


def _only(name: str, stored: Sequence[Piece]) -> Extent:
    """The one piece of a tensor that is stored whole."""
    if len(stored) != 1:
        raise ValueError(f"'{name}' is saved twice, in {stored[0].file} and {stored[1].file}")
    if any(stored[0].extent.offsets):
        raise ValueError(f"'{name}' is saved in part only")
    return stored[0].extent
