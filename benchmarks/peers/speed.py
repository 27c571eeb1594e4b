"""The doors for measuring speed: the same texts, on the fly and tokenized before, through every tool."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from peers import Missing, Rows

Mode = Literal["streaming", "prepared"]

TOOLS = {
    "umbel": "ours_speed",
    "datasets": "hf_speed",
    "mosaic": "mosaic_speed",
    "litdata": "lightning_speed",
}
BATCH = 8
"""Rows at a time."""


@dataclass(frozen=True)
class Material:
    """What is read, in a folder: texts in Parquet files, a tokenizer, and the texts' rows of tokens."""

    folder: Path
    length: int

    @property
    def texts(self) -> list[Path]:
        return sorted((self.folder / "texts").glob("*.parquet"))

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer" / "tokenizer.json"

    @property
    def order(self) -> Path:
        """The numbers of an epoch of texts in the order in which Umbel reads them."""
        return self.folder / "order.json"

    def rows(self) -> Rows:
        rows: Rows = np.load(self.folder / "rows.npy", mmap_mode="r")
        return rows

    def own(self, tool: str, mode: Mode) -> Path:
        """The tool's own folder."""
        return self.folder / tool / mode


class Speed(Protocol):
    """A tool, for its speed."""

    requires: tuple[str, ...]

    def write(self, material: Material, mode: Mode) -> None:
        """Make the tool's own format, in `Material.own`."""

    def open(self, material: Material, mode: Mode, workers: int, at: float | None) -> Iterator[Rows]:
        """Batches of `BATCH` rows without end, shuffled, on one rank; int64, as models take them.

        ``at``: as a run that resumes after that share of an epoch.
        """


def load_speed(name: str) -> Speed:
    """The adapter of a tool.

    Raises:
        Missing: it, or something it needs, is not installed.
    """
    try:
        speed: Speed = importlib.import_module(f"peers.{TOOLS[name]}").Speed()
    except ImportError as error:
        raise Missing(f"{name} cannot be imported ({error}); see benchmarks/peers/README.md") from error
    return speed
