"""A run's data, opened: its manifest, its tokenizer, its rows."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from base.errors import UmbelError
from data.manifest import Manifest, read_manifest
from data.manifest_shape import SPLITS
from data.places.locks import locked
from data.report import Report, silent
from data.rows.shards import CRC32, RowTable, copy_of, write_copy
from data.tokens.tokenizer import TextTokenizer, load_tokenizer

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "held_out"]

TOKENIZER = "tokenizer"
"""The folder of a finished folder that holds its tokenizer."""


@dataclass(frozen=True)
class Prepared:
    """A finished folder. In prepared mode it holds the rows of every source; in streaming mode only those
    held out, and the train split has no rows."""

    folder: Path
    manifest: Manifest

    @property
    def mode(self) -> Literal["prepared", "streaming"]:
        mode: Literal["prepared", "streaming"] = self.manifest["mode"]
        return mode

    @property
    def sources(self) -> list[str]:
        return list(self.manifest["sources"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def sequence_length(self) -> int:
        return int(self.manifest["sequence_length"])

    @property
    def packing(self) -> str:
        return str(self.manifest["packing"])

    @property
    def vocab_size(self) -> int:
        """One more than the tokenizer's largest id."""
        return int(self.manifest["vocab_size"])

    @property
    def pad_id(self) -> int:
        return int(self.manifest["pad_id"])

    @property
    def unigram_entropy(self) -> float:
        """Of the train split's targets (of a large source, or one that is streamed, those at its beginning),
        in nats: the loss of the best model that knows only frequencies."""
        return float(self.manifest["unigram_entropy"])

    @property
    def tokenizer_folder(self) -> Path:
        """A Transformers folder: copy it beside an exported model."""
        return self.folder / TOKENIZER

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return load_tokenizer(self.tokenizer_folder)

    @cached_property
    def _tables(self) -> dict[tuple[str, str], RowTable]:
        return {}

    def rows(self, source: str, split: Split) -> RowTable:
        """The rows of one source and split."""
        if (source, split) not in self._tables:
            shards = self.manifest["sources"][source][split]["shards"]
            self._tables[source, split] = RowTable(self.folder / source / split, shards)
        return self._tables[source, split]

    def dataset(self, source: str, split: Split) -> datasets.Dataset:
        """The same rows as a memory-mapped Hugging Face dataset."""
        import datasets

        shards = self.manifest["sources"][source][split]["shards"]
        if not shards:
            return datasets.Dataset.from_dict({"input_ids": [], "doc_lens": [], "doc_ids": []})
        files = [str(copy_of(self.folder / source / split / shard["name"])) for shard in shards]
        rows = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
        return rows.remove_columns(CRC32)


def open_prepared(folder: Path, report: Report = silent) -> Prepared:
    """Open a folder that `prepare` finished. Arrow copies that are missing, as where only the Parquet files
    were copied to another machine, are made again, and ``report`` is told how many shards that are.

    Raises:
        UmbelError: no manifest (not finished), another version's, or a shard that is missing, cut short or
            damaged.
    """
    prepared = Prepared(folder, read_manifest(folder))
    if _all_bare(prepared):
        with locked(folder / "copies"):  # of all processes that start at once, one makes them
            _make_copies(_all_bare(prepared), report)
    return prepared


def _all_bare(prepared: Prepared) -> list[tuple[Path, str]]:
    bare: list[tuple[Path, str]] = []
    for name in prepared.sources:
        for split in SPLITS:
            shards = prepared.manifest["sources"][name][split]["shards"]
            bare += _bare(prepared, prepared.folder / name / split, shards) if shards else []
    return bare


def _bare(prepared: Prepared, folder: Path, shards: list[dict[str, Any]]) -> list[tuple[Path, str]]:
    """The path and hash of each shard without its Arrow copy."""
    try:
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    except OSError:
        sizes = {}
    bare = []
    for shard in shards:
        path = folder / shard["name"]
        size = prepared.manifest["sizes"].get(path.relative_to(prepared.folder).as_posix())
        found = sizes.get(path.name)
        if found != size:
            what = "is missing" if found is None else f"should have {size} bytes, but has {found}"
            raise UmbelError(
                what, where=str(path), fix=f"delete {prepared.folder} and prepare the data again"
            )
        if copy_of(path).name not in sizes:
            bare.append((path, shard["sha256"]))
    return bare


def _make_copies(bare: list[tuple[Path, str]], report: Report) -> None:
    # Arrow does the work outside of Python's lock; a few shards at once fill the memory of no machine.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(lambda shard: write_copy(*shard), bare), 1):
            report("Arrow copies", done, len(bare), "shards")


def check_vocabulary(prepared: Prepared, model_vocab_size: int) -> None:
    """Refuse token ids that the model's embedding has no row for.

    Raises:
        UmbelError: the tokenizer's vocabulary is larger than the model's.
    """
    if prepared.vocab_size > model_vocab_size:
        raise UmbelError(
            f"the tokenizer has ids up to {prepared.vocab_size - 1}, but the model's vocab_size is "
            f"{model_vocab_size}",
            where="model.config.vocab_size",
            fix=f"set it to at least {prepared.vocab_size}, or choose a smaller tokenizer",
        )
