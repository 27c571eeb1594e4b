"""Other tools for streaming training data, each behind the same small door, as its own documents use it.

An adapter is a module of this package with a class `Peer`. It writes a corpus in the tool's own format and
opens it for one rank; what it hands on between two openings is JSON.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.integer]
"""[rows, length] token ids."""

SEED = 11

ADAPTERS = {
    "umbel prepared": "ours:Prepared",
    "umbel streaming": "ours:Streaming",
    "datasets": "hf:Datasets",
    "datasets, no buffer": "hf:WithoutBuffer",
    "mosaic": "mosaic:Mosaic",
    "litdata": "lightning:Lightning",
    "litdata combined": "lightning:Combined",
}
"""Name of a tool, and where its adapter is."""


class Missing(Exception):
    """A tool that is not installed; the text says how to install it."""


@dataclass(frozen=True)
class Place:
    """Who reads: a rank and the shape of the run it is part of. ``batch`` rows come out at a time."""

    rank: int = 0
    world_size: int = 1
    workers: int = 0
    batch: int = 8


@dataclass(frozen=True)
class Wish:
    """What is read of it: steps [first, stop) of ``global_batch`` rows, and with what on."""

    first: int
    stop: int
    global_batch: int
    filtered: bool = False
    packed: bool = False


class Reader(Protocol):
    """Batches of one rank, and where it stands."""

    def __iter__(self) -> Iterator[Rows]: ...

    def state(self) -> Any:
        """JSON; asked for after the last batch that was taken."""


class Adapter(Protocol):
    """A tool.

    ``requires`` are its distributions, whose versions are told; ``filters``, ``packs`` and ``mixes`` say
    what it can do by itself while it streams; ``slots`` that its rows end with their slot in the run.
    """

    name: str
    requires: tuple[str, ...]
    filters: bool
    packs: bool
    mixes: bool
    slots: bool

    def write(self, folder: Path, corpus: Corpus) -> None:
        """Put a corpus there in the tool's own format."""

    def open(self, folder: Path, place: Place, wish: Wish, states: list[Any] | None) -> Reader:
        """Read it as one rank of many; ``states`` are those of all ranks of the run before."""

    def epoch(self, rows: Rows, corpus: Corpus, folder: Path, wish: Wish) -> Rows:
        """The tokens of the first epoch, of all rows of a run that began with nothing."""


class Ending:
    """A tool whose stream ends with the epoch, and whose rows have no place in their step."""

    slots = False

    def epoch(self, rows: Rows, _corpus: Corpus, _folder: Path, _wish: Wish) -> Rows:
        return rows


@dataclass(frozen=True)
class Corpus:
    """Documents of some sources. A token is a number that no other token has.

    ``sources`` maps a name to documents of token numbers; ``kept`` tells the even documents, which is what
    the filter of the test keeps. ``length`` is the length of a row.
    """

    sources: Mapping[str, list[list[int]]]
    length: int

    @property
    def total(self) -> int:
        return sum(len(documents) for documents in self.sources.values())

    def weights(self) -> dict[str, float]:
        """Shares by size: with them all sources end together."""
        return {name: len(documents) / self.total for name, documents in self.sources.items()}


def load(name: str) -> Adapter:
    """The adapter of a tool.

    Raises:
        Missing: it, or something it needs, is not installed.
    """
    module, _, kind = ADAPTERS[name].partition(":")
    try:
        adapter: Adapter = getattr(importlib.import_module(f"peers.{module}"), kind)()
    except ImportError as error:
        raise Missing(f"{name} cannot be imported ({error}); see benchmarks/peers/README.md") from error
    return adapter


def versions(requires: Iterable[str]) -> dict[str, str]:
    """Version of each distribution behind a tool."""
    found = {}
    for name in requires:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "of this repository"
    return found


def chunks(items: list[Any], count: int) -> Iterable[list[Any]]:
    """``items`` cut into ``count`` parts of nearly equal length."""
    edges = [len(items) * index // count for index in range(count + 1)]
    return (items[first:stop] for first, stop in pairwise(edges))
