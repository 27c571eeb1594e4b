"""Umbel, prepared and streaming, behind the same door as its peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

from configs.compose import compose
from configs.schema import RunConfig
from data.prepare import prepare_run
from data.stream import BatchStream, Share
from data.tokens.tokenizer import END_OF_TEXT
from peers import SEED, Corpus, Place, Rows, Wish, chunks

FILES = 3
"""Per source."""


class Umbel:
    """Either mode. Documents are texts whose words are their token numbers; 0 ends a document.

    Unpacked rows are documents of ``length`` words: their end is the last target, so that the inputs are
    just the words.
    """

    requires = ("umbel",)
    filters = packs = mixes = slots = True
    mode: str

    def write(self, folder: Path, corpus: Corpus) -> None:
        for source, documents in corpus.sources.items():
            texts = [(" ".join(map(str, ids)), "ny"[index % 2 == 0]) for index, ids in enumerate(documents)]
            for index, part in enumerate(chunks(texts, FILES)):
                table = pa.table({"text": [text for text, _ in part], "kept": [kept for _, kept in part]})
                target = folder / source / f"{index}.parquet"
                target.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, target)
        words = {str(token): token for source in corpus.sources.values() for ids in source for token in ids}
        model = tokenizers.models.WordLevel({END_OF_TEXT: 0} | words, END_OF_TEXT)
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens([END_OF_TEXT])
        tokenizer.save(str(folder / "tokenizer.json"))

    def open(self, folder: Path, place: Place, wish: Wish, states: list[Any] | None) -> Reader:
        config = self.config(folder, place, wish)
        stream = BatchStream(prepare_run(config), config)
        # Each rank's state holds the cursors of its own lanes, and zeros.
        before = np.sum([np.array(state, np.int64) for state in states], axis=0) if states else None
        share = Share(place.rank, place.world_size, place.batch)
        return Reader(stream, range(wish.first + 1, wish.stop + 1), share, before)

    def config(self, folder: Path, place: Place, wish: Wish) -> RunConfig:
        kept = ", filters: {columns: {kept: [y]}}" if wish.filtered else ""
        names = sorted(path.name for path in folder.iterdir() if list(path.glob("*.parquet")))
        rows = {name: sum(map(_rows, (folder / name).glob("*.parquet"))) for name in names}
        sources = [f"{name}: {{path: '{folder / name}', weight: {rows[name]}{kept}}}" for name in names]
        return compose(
            [
                "run.name=elasticity",
                f"run.seed={SEED}",
                "model=llama_tiny",
                "data=local",
                f"data.mode={self.mode}",
                f"data.sources={{{', '.join(sources)}}}",
                f"data.tokenizer.path='{folder / 'tokenizer.json'}'",
                f"data.cache_dir='{folder / 'cache'}'",
                f"data.packing={'concat' if wish.packed else 'none'}",
                "data.sequence_length=16",
                "data.held_out=0",
                "data.mixture.by=samples",
                f"data.workers={place.workers}",
                f"schedule.global_batch={wish.global_batch}",
                f"schedule.steps={max(wish.stop, 1000)}",
                "schedule.warmup_steps=0",
            ]
        )

    def epoch(self, rows: Rows, corpus: Corpus, folder: Path, wish: Wish) -> Rows:
        """The tokens of the first epoch among the rows of a whole run, in order of their slots."""
        config = self.config(folder, Place(), wish)
        stream = BatchStream(prepare_run(config), config)
        return np.concatenate([self.first_epoch(rows, stream, name, corpus) for name in corpus.sources])

    def first_epoch(self, rows: Rows, stream: BatchStream, name: str, corpus: Corpus) -> Rows:
        raise NotImplementedError


class Prepared(Umbel):
    name = "umbel prepared"
    mode = "prepared"

    def first_epoch(self, rows: Rows, stream: BatchStream, name: str, _corpus: Corpus) -> Rows:
        """As many rows of the source as it has: the order deals them out in rounds, so by their ordinals."""
        picks = stream.order.picks(stream.order.numbers(range(len(rows))))
        size = len(stream.prepared.rows(name, "train"))
        is_mine = picks.sources == stream.order.sources.index(name)
        return rows[is_mine & (picks.ordinals < size)].ravel()


class Streaming(Umbel):
    name = "umbel streaming"
    mode = "streaming"

    def first_epoch(self, rows: Rows, stream: BatchStream, name: str, corpus: Corpus) -> Rows:
        """In each lane as many tokens as its share of the source's documents has: an epoch ends lane by
        lane, and lanes may be a few documents apart."""
        lanes, order, documents = stream.order.lanes, stream._sources[name].order, corpus.sources[name]
        filtered = bool(stream.data.sources[name].filters.columns)
        first, last = documents[0][0], documents[-1][-1]
        found = []
        for lane in range(lanes):
            mine = rows[lane::lanes]
            # Rows never mix sources.
            tokens = mine[(mine.max(axis=1) >= first) & (mine.max(axis=1) <= last)].ravel()
            numbers = [order.number(position) for position in range(lane, order.epoch_length, lanes)]
            kept = [each for each in numbers if each is not None and not (filtered and each % 2)]
            found.append(tokens[tokens > 0][: sum(len(documents[each]) for each in kept)])
        return np.concatenate(found)


class Reader:
    """A rank's rows, each with its slot in the run as its last number."""

    def __init__(self, stream: BatchStream, steps: range, share: Share, cursors: Any) -> None:
        self.steps = stream.read(steps, share, cursors)
        self.cursors: list[Any] | None = None

    def __iter__(self) -> Iterator[Rows]:
        for step in self.steps:
            self.cursors = None if step.cursors is None else step.cursors.tolist()
            for batch in step.batches:
                slots = np.arange(batch.first_slot, batch.first_slot + len(batch.input_ids))
                yield np.concatenate([batch.input_ids, slots[:, None]], axis=1)

    def state(self) -> Any:
        return 0 if self.cursors is None else self.cursors


def _rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)
