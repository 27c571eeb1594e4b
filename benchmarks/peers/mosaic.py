"""MosaicML Streaming: StreamingDataset over MDS shards.

As in https://docs.mosaicml.com/projects/streaming: streams with proportions, `batch_size` told to the dataset
too, a constant global batch, and the state that `StreamingDataLoader` gives on rank 0.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peers import SEED, Corpus, Ending, Place, Rows, Wish


def _stand_in_for_torchvision() -> None:
    """`import streaming` imports its vision part, and that torchvision, which a CPU torch may lack."""
    if importlib.util.find_spec("torchvision"):
        return
    for name, classes in {
        "torchvision": (),
        "torchvision.datasets": ("CIFAR10", "ImageFolder", "VisionDataset"),
        "torchvision.transforms": (),
        "torchvision.transforms.functional": ("to_tensor",),
    }.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update({each: type(each, (), {}) for each in classes})
        sys.modules[name] = module


_stand_in_for_torchvision()

from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402


class Mosaic(Ending):
    """Rows from MDS shards, mixed by proportion. It has neither filters nor packing."""

    name = "mosaic"
    requires = ("mosaicml-streaming",)
    filters = packs = False
    mixes = True

    def write(self, folder: Path, corpus: Corpus) -> None:
        clean_stale_shared_memory()  # of processes that were killed
        for source, documents in corpus.sources.items():
            columns = {"input_ids": "ndarray:int32"}
            with MDSWriter(out=str(folder / source), columns=columns, size_limit="8kb") as out:
                for document in documents:
                    out.write({"input_ids": np.array(document, np.int32)})

    def open(self, folder: Path, place: Place, _wish: Wish, states: list[Any] | None) -> Loader:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        dataset = StreamingDataset(
            # Each row once an epoch; proportions would round.
            streams=[Stream(local=str(folder / name), repeat=1) for name in names],
            batch_size=place.batch,
            shuffle=True,
            shuffle_seed=SEED,
            # "For elastic determinism" it must stay what it was: one, and here all ranks are on one node.
            num_canonical_nodes=1,
        )
        return Loader(dataset, place, states[0] if states else None)


class Loader:
    """A StreamingDataLoader over rows in the column ``input_ids``."""

    def __init__(self, dataset: Any, place: Place, state: Any) -> None:
        self.loader = StreamingDataLoader(
            dataset, batch_size=place.batch, num_workers=place.workers, collate_fn=collate
        )
        if state is not None:
            self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[Rows]:
        return (batch.numpy() for batch in self.loader)

    def state(self) -> Any:
        return self.loader.state_dict()


def collate(rows: list[dict[str, Any]]) -> torch.Tensor:
    # A tensor: of anything else the loader takes the length of the first element for the batch's.
    return torch.from_numpy(np.stack([row["input_ids"] for row in rows]))
