"""A prepared folder, opened: its manifest, its tokenizer, its rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from base.errors import UmbelError
from base.files import read_json
from data.manifest import NAME, VERSION, Manifest
from data.shards import RowTable
from data.tokenizer import TextTokenizer, load_tokenizer

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Prepared:
    """Tokenized rows of every source, on disk."""

    folder: Path
    manifest: Manifest

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
    def packing(self) -> bool:
        return bool(self.manifest["packing"])

    @property
    def vocab_size(self) -> int:
        """One more than the tokenizer's largest id."""
        return int(self.manifest["vocab_size"])

    @property
    def pad_id(self) -> int:
        return int(self.manifest["pad_id"])

    @property
    def unigram_entropy(self) -> float:
        """Of the train split's targets, in nats: the loss of the best model that knows only frequencies."""
        return float(self.manifest["unigram_entropy"])

    @property
    def tokenizer_folder(self) -> Path:
        """A Transformers folder: copy it beside an exported model."""
        return self.folder / "tokenizer"

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
            paths = [self.folder / source / split / shard["name"] for shard in shards]
            self._tables[source, split] = RowTable(paths, [shard["rows"] for shard in shards])
        return self._tables[source, split]

    def dataset(self, source: str, split: Split) -> datasets.Dataset:
        """The same rows as a memory-mapped Hugging Face dataset."""
        import datasets

        shards = self.manifest["sources"][source][split]["shards"]
        if not shards:
            return datasets.Dataset.from_dict({"input_ids": [], "doc_lens": []})
        files = [str(self.folder / source / split / shard["name"]) for shard in shards]
        return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])


def open_prepared(folder: Path) -> Prepared:
    """Open a folder that `prepare` finished.

    Raises:
        UmbelError: no manifest (not finished), another version's, or a shard that is missing or cut short.
    """
    path = folder / NAME
    again = "prepare the data again"
    if not path.is_file():
        raise UmbelError("holds no prepared data", where=str(folder), fix=again)
    manifest = read_json(path)
    if manifest.get("version") != VERSION:
        what = f"is of version {manifest.get('version')}, not {VERSION}"
        raise UmbelError(what, where=str(path), fix=again)
    for name, size in manifest["sizes"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            what = (
                f"should have {size} bytes, but has {file.stat().st_size}" if file.is_file() else "is missing"
            )
            raise UmbelError(what, where=str(file), fix=f"delete {folder} and {again}")
    return Prepared(folder, manifest)


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
