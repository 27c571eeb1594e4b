"""Hugging Face `datasets`: IterableDataset with torchdata's StatefulDataLoader.

As in https://huggingface.co/docs/datasets/stream: `interleave_datasets`, then `shuffle`, then
`split_dataset_by_node`; the state is the loader's, one per rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.distributed import split_dataset_by_node
from torchdata.stateful_dataloader import StatefulDataLoader

from peers import SEED, Corpus, Ending, Place, Rows, Wish, chunks

# Only a pause before threads end, after https://github.com/apache/arrow/issues/45214; the data are the same.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.05
datasets.disable_progress_bars()
datasets.logging.set_verbosity_error()

SHARDS = 24
"""Files per source. Each world size of the test divides it, so that `split_dataset_by_node` gives whole
files to the ranks: otherwise every rank reads everything and keeps its part."""


class Datasets(Ending):
    """Shuffled through a buffer, as the documentation says."""

    name = "datasets"
    requires = ("datasets", "torchdata")
    filters = packs = mixes = True
    shuffling: ClassVar[dict[str, int]] = {"buffer_size": 100}

    def write(self, folder: Path, corpus: Corpus) -> None:
        for source, documents in corpus.sources.items():
            kept = [index % 2 == 0 for index in range(len(documents))]
            rows = list(zip(documents, kept, strict=True))
            for index, part in enumerate(chunks(rows, SHARDS)):
                ids = pa.array([document for document, _ in part], pa.list_(pa.int32()))
                table = pa.table({"input_ids": ids, "kept": [keep for _, keep in part]})
                target = folder / source / f"{index:03d}.parquet"
                target.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, target)

    def open(self, folder: Path, place: Place, wish: Wish, states: list[Any] | None) -> Loader:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        files = [sorted(map(str, (folder / name).glob("*.parquet"))) for name in names]
        rows = [pq.ParquetDataset(each).read(columns=[]).num_rows for each in files]
        sources = [
            datasets.load_dataset("parquet", data_files=each, split="train", streaming=True) for each in files
        ]
        if wish.filtered:
            sources = [source.filter(is_kept) for source in sources]
        # Each row once, then the end: the only strategy that neither repeats nor leaves out.
        stream = datasets.interleave_datasets(
            sources,
            probabilities=[count / sum(rows) for count in rows],
            seed=SEED,
            stopping_strategy="all_exhausted_without_replacement",
        )
        stream = stream.shuffle(seed=SEED, **self.shuffling)
        stream = split_dataset_by_node(stream, place.rank, place.world_size)
        if wish.packed:
            stream = stream.map(pack, batched=True, batch_size=32, remove_columns=["kept"])
        # A rank that was not there before takes the state of another: there is no rule for it.
        state = states[place.rank % len(states)] if states else None
        return Loader(stream, place, state)


class WithoutBuffer(Datasets):
    """Only the order of the files is shuffled: no buffer whose rows a resume could lose."""

    name = "datasets, no buffer"
    shuffling: ClassVar = {"buffer_size": 1, "max_buffer_input_shards": 1}


class Loader:
    """A StatefulDataLoader over rows in the column ``input_ids``."""

    def __init__(self, stream: Any, place: Place, state: Any) -> None:
        self.loader = StatefulDataLoader(
            stream, batch_size=place.batch, num_workers=place.workers, collate_fn=collate
        )
        if state is not None:
            self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.loader)

    def state(self) -> Any:
        return self.loader.state_dict()


def is_kept(row: dict[str, Any]) -> bool:
    return bool(row["kept"])


def pack(batch: dict[str, list[Any]], length: int = 16) -> dict[str, list[list[int]]]:
    """Documents end to end, cut into rows; the last one of a batch is padded, not dropped."""
    ids = [token for document in batch["input_ids"] for token in document]
    ids += [0] * (-len(ids) % length)
    return {"input_ids": [ids[start : start + length] for start in range(0, len(ids), length)]}


def collate(rows: list[dict[str, Any]]) -> Rows:
    return np.array([row["input_ids"] for row in rows], np.int64)
