"""Speed of LitData: optimized chunks of texts, and of tokens through a TokensLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize
from torch.utils.data import DataLoader, IterableDataset

from peers import SEED, Rows
from peers.packing import pack
from peers.speed import BATCH, Material, Mode

PART_ROWS = 1024


class Speed:
    """A shuffled StreamingDataset that lies on this machine."""

    requires = ("litdata", "torch")

    def write(self, material: Material, mode: Mode) -> None:
        folder = str(material.own("litdata", mode))
        settings: dict[str, Any] = {"num_workers": 1, "start_method": "fork", "verbose": False}
        if mode == "prepared":
            count = len(material.rows())
            parts = [(str(material.folder), material.length, first) for first in range(0, count, PART_ROWS)]
            loader = TokensLoader(block_size=material.length)
            # Whole rows in a chunk: what does not fill a block at its end would be lost.
            size = 16 * PART_ROWS * material.length
            optimize(tokens, parts, folder, chunk_size=size, item_loader=loader, **settings)
            return
        optimize(texts, [str(path) for path in material.texts], folder, chunk_bytes="64MB", **settings)

    def open(self, material: Material, mode: Mode, workers: int, at: float | None) -> Iterator[Rows]:
        items = TokensLoader(block_size=material.length) if mode == "prepared" else None
        folder = str(material.own("litdata", mode))
        dataset = StreamingDataset(folder, item_loader=items, shuffle=True, seed=SEED)
        taken = 0 if at is None else int(at * dataset.get_len(workers, BATCH)) // BATCH * BATCH
        state = dataset.state_dict(taken, workers, BATCH)
        if mode == "prepared":
            loader: Any = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)
            if taken:
                loader.load_state_dict(
                    {
                        "dataset": state,
                        "current_epoch": 1,
                        "num_samples_yielded": taken,
                        "latest_worker_idx": 0,
                    }
                )
        else:
            if taken:
                dataset.load_state_dict(state)
            loader = DataLoader(Packed(dataset, material), batch_size=BATCH, num_workers=workers)
        return (batch.long().numpy() for batch in endless(loader))


class Packed(IterableDataset[torch.Tensor]):
    """Packs in the process that reads."""

    def __init__(self, dataset: Any, material: Material) -> None:
        self.dataset, self.material = dataset, material

    def __iter__(self) -> Iterator[Rows]:
        return pack(self.dataset, self.material.tokenizer, self.material.length)


def tokens(part: tuple[str, int, int]) -> Iterator[torch.Tensor]:
    folder, length, first = part
    for row in Material(Path(folder), length).rows()[first : first + PART_ROWS]:
        yield torch.from_numpy(np.array(row))


def texts(path: str) -> Iterator[str]:
    yield from pq.read_table(path)["text"].to_pylist()


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
