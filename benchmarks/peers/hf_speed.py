"""Speed of Hugging Face `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from peers import SEED, Rows
from peers.hf import datasets
from peers.packing import pack
from peers.speed import BATCH, Material, Mode

PROBES = (0.01, 0.5, 0.99)
"""Where a stream is resumed: its state there can only be had by reading up to it."""


class Speed:
    """On the fly: an IterableDataset over Parquet. Prepared: memory-mapped Arrow rows in a random order."""

    requires = ("datasets", "torch", "torchdata")

    def write(self, material: Material, mode: Mode) -> None:
        folder = material.own("datasets", mode)
        folder.mkdir(parents=True)
        if mode == "prepared":
            rows = material.rows()
            features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"), rows.shape[1])})
            made = datasets.Dataset.from_generator(
                lambda: ({"input_ids": row} for row in rows),
                features=features,
                cache_dir=str(folder / "made"),
            )
            made.save_to_disk(str(folder / "rows"))
            return
        stream, total = texts_of(material), datasets.load_dataset(*files(material), split="train").num_rows
        wanted = {int(total * probe): probe for probe in PROBES}
        for index, _ in enumerate(stream, 1):
            if index in wanted:
                (folder / f"{wanted[index]}.json").write_text(json.dumps(stream.state_dict()))

    def open(self, material: Material, mode: Mode, workers: int, at: float | None) -> Iterator[Rows]:
        if mode == "prepared":
            return self.prepared(material, workers, at)
        return self.on_the_fly(material, workers, at)

    def on_the_fly(self, material: Material, workers: int, at: float | None) -> Iterator[Rows]:
        stream = texts_of(material)
        if at is not None:
            state = (material.own("datasets", "streaming") / f"{at}.json").read_text()
            stream.load_state_dict(json.loads(state))
        while True:
            loader = DataLoader(Packed(stream, material), batch_size=BATCH, num_workers=workers)
            yield from (batch.long().numpy() for batch in loader)
            # A stream that was given a state begins there again in each epoch.
            stream = texts_of(material)

    def prepared(self, material: Material, workers: int, at: float | None) -> Iterator[Rows]:
        rows = datasets.load_from_disk(str(material.own("datasets", "prepared") / "rows")).with_format(
            "torch"
        )

        def loader_of(dataset: Any, workers: int) -> StatefulDataLoader:
            generator = torch.Generator().manual_seed(SEED)
            return StatefulDataLoader(
                dataset, BATCH, shuffle=True, num_workers=workers, generator=generator, collate_fn=collate
            )

        loader = loader_of(rows, workers)
        if at is not None:
            # The sampler's state is all there is to it, and the same for any data of that length.
            other = StatefulDataLoader(
                range(len(rows)), BATCH, shuffle=True, generator=torch.Generator().manual_seed(SEED)
            )
            steps = iter(other)
            for _ in range(int(at * len(other))):
                next(steps)
            loader.load_state_dict(other.state_dict())
        while True:
            yield from loader


class Packed(IterableDataset[Rows]):
    """Packs in the process that reads."""

    def __init__(self, stream: Any, material: Material) -> None:
        self.stream, self.material = stream, material

    def __iter__(self) -> Iterator[Rows]:
        texts = (row["text"] for row in self.stream)
        return pack(texts, self.material.tokenizer, self.material.length)


def files(material: Material) -> tuple[str, None, None, list[str]]:
    return "parquet", None, None, [str(path) for path in material.texts]


def texts_of(material: Material) -> Any:
    stream = datasets.load_dataset(*files(material), split="train", streaming=True)
    return stream.shuffle(seed=SEED, buffer_size=1000)


def collate(rows: list[dict[str, Any]]) -> Rows:
    return np.stack([row["input_ids"] for row in rows]).astype(np.int64)
