"""LitData: StreamingDataset and CombinedStreamingDataset over optimized chunks of tokens.

As in https://github.com/Lightning-AI/litData: `optimize` with a TokensLoader, `StreamingDataLoader`, and the
state that it gives on rank 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litdata import (
    CombinedStreamingDataset,
    StreamingDataLoader,
    StreamingDataset,
    TokensLoader,
    optimize,
)

from peers import SEED, Corpus, Ending, Place, Rows, Wish

CHUNK_ROWS = 20


class Lightning(Ending):
    """All sources in one StreamingDataset: what it resumes elastically."""

    name = "litdata"
    requires = ("litdata",)
    filters = packs = mixes = False

    def write(self, folder: Path, corpus: Corpus) -> None:
        rows = [row for documents in corpus.sources.values() for row in documents]
        write_tokens(folder / "all", rows, corpus.length)

    def open(self, folder: Path, place: Place, _wish: Wish, states: list[Any] | None) -> Loader:
        return Loader(tokens(folder / "all"), place, states)


class Combined(Lightning):
    """One StreamingDataset per source, mixed; each row once, in shares of their sizes."""

    name = "litdata combined"
    mixes = True

    def write(self, folder: Path, corpus: Corpus) -> None:
        for source, documents in corpus.sources.items():
            write_tokens(folder / source, documents, corpus.length)

    def open(self, folder: Path, place: Place, _wish: Wish, states: list[Any] | None) -> Loader:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        parts = [tokens(folder / name) for name in names]
        return Loader(CombinedStreamingDataset(parts, seed=SEED, iterate_over_all=True), place, states)


class Loader:
    """A StreamingDataLoader over rows of tokens."""

    def __init__(self, dataset: Any, place: Place, states: list[Any] | None) -> None:
        self.loader = StreamingDataLoader(dataset, batch_size=place.batch, num_workers=place.workers)
        if states:
            # Of the ranks' own, which are alike; JSON has made its whole keys texts.
            state = states[place.rank % len(states)]
            if isinstance(state["num_samples_yielded"], dict):
                yielded = {int(worker): count for worker, count in state["num_samples_yielded"].items()}
                state["num_samples_yielded"] = yielded
            self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[Rows]:
        return (batch.numpy() for batch in self.loader)

    def state(self) -> Any:
        return self.loader.state_dict()


def tokens(folder: Path, length: int = 16) -> StreamingDataset:
    loader = TokensLoader(block_size=length)
    return StreamingDataset(str(folder), item_loader=loader, shuffle=True, drop_last=False, seed=SEED)


def write_tokens(folder: Path, rows: list[list[int]], length: int) -> None:
    parts = [rows[first : first + CHUNK_ROWS] for first in range(0, len(rows), CHUNK_ROWS)]
    optimize(
        fn=partial(as_tensors),
        inputs=parts,
        output_dir=str(folder),
        chunk_size=CHUNK_ROWS * length,
        item_loader=TokensLoader(block_size=length),
        num_workers=1,
        start_method="fork",
        keep_data_ordered=True,
        verbose=False,
    )


def as_tensors(rows: list[list[int]]) -> Iterator[torch.Tensor]:
    for row in rows:
        yield torch.from_numpy(np.array(row, np.int32))
