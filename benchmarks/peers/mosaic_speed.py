"""Speed of MosaicML Streaming: MDS shards of texts, and of rows as int32 arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset

from peers import SEED, Rows
from peers.mosaic import MDSWriter, StreamingDataLoader, StreamingDataset, collate
from peers.packing import pack
from peers.speed import BATCH, Material, Mode


class Speed:
    """A shuffled StreamingDataset that lies on this machine."""

    requires = ("mosaicml-streaming", "torch")

    def write(self, material: Material, mode: Mode) -> None:
        out = str(material.own("mosaic", mode))
        if mode == "prepared":
            rows = material.rows()
            with MDSWriter(out=out, columns={"input_ids": f"ndarray:int32:{rows.shape[1]}"}) as writer:
                for row in rows:
                    writer.write({"input_ids": row})
            return
        with MDSWriter(out=out, columns={"text": "str"}) as writer:
            for path in material.texts:
                for text in pq.read_table(path)["text"].to_pylist():
                    writer.write({"text": text})

    def open(self, material: Material, mode: Mode, workers: int, at: float | None) -> Iterator[Rows]:
        local = str(material.own("mosaic", mode))
        dataset = StreamingDataset(
            local=local, shuffle=True, shuffle_seed=SEED, batch_size=BATCH, num_canonical_nodes=1
        )
        if at is not None:
            dataset.load_state_dict(
                {
                    "epoch": 0,
                    "sample_in_epoch": int(at * dataset.size) // BATCH * BATCH,
                    "num_canonical_nodes": 1,
                    "shuffle_seed": SEED,
                    "initial_physical_nodes": 1,
                }
            )
        if mode == "prepared":
            loader: Any = StreamingDataLoader(
                dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate
            )
        else:
            loader = DataLoader(Packed(dataset, material), batch_size=BATCH, num_workers=workers)
        return (batch.long().numpy() for batch in endless(loader))


class Packed(IterableDataset[torch.Tensor]):
    """Packs in the process that reads."""

    def __init__(self, dataset: Any, material: Material) -> None:
        self.dataset, self.material = dataset, material

    def __iter__(self) -> Iterator[Rows]:
        texts = (row["text"] for row in self.dataset)
        return pack(texts, self.material.tokenizer, self.material.length)


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
