"""Bytes of a file, unpacked by its ending, and bytes as text."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from base.errors import UmbelError
from data.readers.faults import naming

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
BUFFER = 1 << 20


def compression_of(name: str) -> str | None:
    """Arrow's name for the packing that a file's ending tells."""
    return COMPRESSIONS.get(Path(name).suffix.lower())


@contextmanager
def open_bytes(path: Path, name: str, place: str) -> Iterator[BinaryIO]:
    """The file's bytes. ``name`` tells its packing, ``place`` is what errors name.

    Raises:
        BadFile: it cannot be read, is cut off, or fails its packing's checksum.
    """
    packing = compression_of(name)
    with naming(place):
        if packing is None:
            with open(path, "rb", buffering=BUFFER) as file:
                yield file
        else:
            with pa.input_stream(str(path), compression=packing) as packed:
                yield cast(BinaryIO, io.BufferedReader(packed, BUFFER))


def decoded(content: bytes, place: str, line: int) -> str:
    """UTF-8 to text. ASCII in UTF-16 is UTF-8 too, but full of zero bytes, which no text holds.

    Raises:
        UmbelError: names the line, counted from ``line``, the first of ``content``.
    """
    try:
        wrong = content.find(b"\0")
        if wrong < 0:
            return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        wrong = error.start
    line += content.count(b"\n", 0, wrong)
    raise UmbelError(
        "is not UTF-8 text",
        where=f"{place}:{line}",
        fix="convert it: iconv -f <encoding, often UTF-16> -t UTF-8",
    )
