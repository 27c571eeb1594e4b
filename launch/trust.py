"""Verifying, measuring and comparing checkpoints for the command line, with a bar where it takes long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from base.errors import UmbelError
from checkpoint.diff import Difference, diff
from checkpoint.inspect import describe
from checkpoint.norms import norms
from checkpoint.reader import StateReader
from checkpoint.verify import Mode, verify
from launch.screens.reading import reading

NORMS_BELOW = 8 << 30
"""Bytes of a checkpoint whose norms are shown without being asked for: half a minute at most."""


def verified(folder: Path, mode: Mode) -> dict[str, Any]:
    """Verify one checkpoint; what was checked, as plain data.

    Raises:
        UmbelError: it is not what it should be; names the file and the fact.
    """
    began = time.perf_counter()
    total = 0 if mode == "sizes" else _size(folder)
    with reading(f"verifying {folder.name}", total) as tell:
        found = verify(folder, mode, tell=tell)
    seconds = time.perf_counter() - began
    return {
        "ok": True,
        "folder": folder.name,
        "run_name": found.manifest["run_name"],
        "step": found.manifest["step"],
        "mode": mode,
        "files": found.files,
        "bytes": found.bytes,
        "hashed": found.hashed,
        "seconds": round(seconds, 3),
        "bytes_per_second": round(found.hashed / seconds),
        "manifest_sha256": found.digest,
    }


def verified_or_not(folder: Path, mode: Mode) -> dict[str, Any]:
    """As :func:`verified`, but a refusal is an answer, too: ``{"ok": False, "folder", "error"}``."""
    try:
        return verified(folder, mode)
    except UmbelError as error:
        return {"ok": False, "folder": folder.name, "error": str(error)}


def described(folder: Path, with_norms: bool | None) -> dict[str, Any]:
    """`checkpoint.inspect.describe`, and ``norms`` if asked for, or if not asked and it is soon done."""
    facts = describe(folder)
    if with_norms or (with_norms is None and facts["bytes"] < NORMS_BELOW):
        with StateReader(folder) as reader, reading("measuring", facts["bytes"]) as tell:
            facts["norms"] = norms(reader, tell)
    return facts


def compared(a: Path, b: Path) -> Difference:
    """`checkpoint.diff.diff` of two folders."""
    with StateReader(a) as one, StateReader(b) as other, reading("comparing", _size(a)) as tell:
        return diff(one, other, tell)


def _size(folder: Path) -> int:
    try:
        return sum(path.lstat().st_size for path in folder.iterdir())
    except OSError:
        return 0
