"""The places of a file where reading can begin (`data.files.SourceFile.blocks`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from data.files import SourceFile

Blocks = tuple[tuple[int, int], ...]


def block_before(file: SourceFile, row: int) -> tuple[int, int]:
    """(first row, place) of the block that holds ``row``."""
    return file.blocks[_index(file, row)]


def blocks_between(file: SourceFile, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(place, first row, end) of every block with rows in [start, stop)."""
    ends = [*(first for first, _ in file.blocks[1:]), file.rows]
    for index in range(_index(file, start), len(file.blocks)):
        first, place = file.blocks[index]
        if first >= stop:
            return
        yield place, first, ends[index]


def blocks_of(lengths: list[int]) -> tuple[int, Blocks]:
    """Rows, and the blocks, of a file whose row groups or batches have these lengths; empty ones left out."""
    rows, blocks = 0, []
    for place, length in enumerate(lengths):
        if length:
            blocks.append((rows, place))
        rows += length
    return rows, tuple(blocks)


def _index(file: SourceFile, row: int) -> int:
    return bisect_right(file.blocks, row, key=lambda block: block[0]) - 1
