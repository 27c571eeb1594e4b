"""A large natural text that every machine with a Python has: the sources and texts of what is installed."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ENDINGS = {".py", ".md", ".rst", ".txt", ".h", ".cpp"}
LARGEST = 1_000_000
"""Bytes; a larger file is data, not text."""


def texts(megabytes: float) -> list[str]:
    """At least so many MB of different texts, in an order by their hashes.

    Where the machine holds less they are repeated, each time under a first line that numbers the copy.
    """
    wanted, found, size = int(megabytes * 1e6), list(_installed()), 0
    chosen: list[str] = []
    copy = 0
    while size < wanted:
        for text in found:
            text = text if copy == 0 else f"Copy {copy}\n{text}"
            chosen.append(text)
            size += len(text.encode())
            if size >= wanted:
                break
        copy += 1
    return chosen


def _installed() -> Iterator[str]:
    """The texts, each once, sorted by their hash: neighbours have nothing in common."""
    places = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    by_hash: dict[str, Path] = {}
    for path in sorted({file for place in places for file in place.rglob("*")}):
        if path.suffix in ENDINGS and path.is_file() and 200 <= path.stat().st_size <= LARGEST:
            by_hash.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
    for digest in sorted(by_hash):
        try:
            yield by_hash[digest].read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
