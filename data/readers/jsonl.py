"""JSON Lines: one object a line, plain or packed. Blank lines are rows without a record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from base.errors import UmbelError
from data.files import SourceFile
from data.readers.blocks import Blocks, block_before
from data.readers.faults import changed, kind_name
from data.readers.selection import Record
from data.readers.streams import compression_of, decoded, open_bytes

BLOCK_LINES = 1000
CHUNK = 1 << 20


def columns(path: Path) -> list[str]:
    """The keys of the first record."""
    with open_bytes(path, path.name, str(path)) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                return list(_record(line, str(path), number))
    return []


def count(path: Path) -> tuple[int, Blocks]:
    """Lines, and the byte offset of every thousandth; a packed file can only be read from its start."""
    with open_bytes(path, path.name, str(path)) as stream:
        lines, offsets = _count_lines(stream)
    places = [0] if compression_of(path.name) else offsets
    return lines, tuple((index * BLOCK_LINES, place) for index, place in enumerate(places) if lines)


def _count_lines(stream: BinaryIO) -> tuple[int, list[int]]:
    lines, offsets, size, last = 0, [0], 0, b"\n"
    while chunk := stream.read(CHUNK):
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
        # The next block begins behind the line end that makes the count a multiple of BLOCK_LINES.
        offsets += (ends[BLOCK_LINES - 1 - lines % BLOCK_LINES :: BLOCK_LINES] + size + 1).tolist()
        lines, size, last = lines + len(ends), size + len(chunk), chunk[-1:]
    if offsets[-1] == size:
        offsets.pop()
    return lines + (last != b"\n"), offsets


def records(path: Path, file: SourceFile, place: str, start: int, stop: int) -> Iterator[tuple[int, Record]]:
    """(row, object) of every line in [start, stop) that is not blank."""
    first, offset = block_before(file, start)
    with open_bytes(path, file.name, place) as stream:
        if offset:
            stream.seek(offset)
        row = first
        for line in stream:
            if row == stop:
                break
            row += 1
            if row > start and not line.isspace():
                yield row - 1, _record(line, place, row)
        else:
            if row < stop:
                raise changed(place, file, f"{row} rows")
            return
        if stop == file.rows:
            raise changed(place, file, "more rows")


def _record(line: bytes, place: str, number: int) -> Record:
    try:
        record = json.loads(decoded(line, place, number))
    except (ValueError, RecursionError) as error:
        raise UmbelError(f"is not JSON ({error})", where=f"{place}:{number}") from error
    if not isinstance(record, dict):
        what = f'must be an object like {{"text": …}}, not {kind_name(record)}'
        raise UmbelError(what, where=f"{place}:{number}")
    return record
