"""One source to its shards, in steps that survive a kill.

Documents are taken in order, `SHARD_BYTES` of text at a time. Each such part becomes one shard per split;
then `progress.json` is replaced: it counts the documents read so far, names the shards, and carries the
tokens that did not fill a row. Whoever comes next trusts it, removes the files it does not name, and goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from base.files import read_json, write_json
from configs.schema import Data
from data.document import Document, OpenSource, is_held_out
from data.encode import Example, encode
from data.manifest import SPLITS
from data.pack import Row, one_per_row, pack
from data.shards import write_shard
from data.tokenizer import TextTokenizer

PROGRESS = "progress.json"
SHARD_BYTES = 32 << 20
ENCODE_BYTES = 4 << 20  # per call of the tokenizer: bounds its memory


@dataclass
class SplitTotals:
    """What one split of one source came to. Nothing that is left out goes uncounted."""

    documents: int = 0
    tokens: int = 0
    rows: int = 0
    truncated_documents: int = 0  # packing=False: longer than a row
    truncated_tokens: int = 0
    left_out_documents: int = 0  # packing=False: nothing left to learn
    left_out_tokens: int = 0  # packing: the end of the stream, too short for a row
    rows_without_targets: int = 0  # packing: left out, for nothing in them is learned
    shards: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Progress:
    """Where the work on a source stands."""

    parts: int = 0
    documents: int = 0  # read so far, empty ones included
    splits: dict[str, SplitTotals] = field(default_factory=lambda: {split: SplitTotals() for split in SPLITS})
    carries: dict[str, Row | None] = field(default_factory=lambda: dict.fromkeys(SPLITS))


def build_source(
    source: OpenSource,
    folder: Path,
    data: Data,
    tokenizer: TextTokenizer,
    say: Callable[[str], None],
) -> dict[str, SplitTotals]:
    """Write every shard of ``source`` below ``folder`` and return the totals of its splits."""
    progress = _resume(folder)
    documents = itertools.islice(source.documents(), progress.documents, None)
    for part in _by_bytes(documents, SHARD_BYTES):
        _build_part(part, folder, data, tokenizer, progress)
        _save_progress(folder, progress)
        tokens = sum(totals.tokens for totals in progress.splits.values())
        say(f"source {source.name}: {progress.documents} documents, {tokens} tokens")
    for split, totals in progress.splits.items():
        carry = progress.carries[split]
        if carry is not None:
            # Of a carry's tokens the first was already a target, in the row before, if there is one.
            cut = totals.rows + totals.rows_without_targets
            totals.left_out_tokens = len(carry.ids) - (1 if cut else 0)
    return progress.splits


def _build_part(
    part: list[Document], folder: Path, data: Data, tokenizer: TextTokenizer, progress: Progress
) -> None:
    for split in SPLITS:
        chosen = [
            document
            for document in part
            if document.text.strip() and is_held_out(document, data.held_out) == (split == "held_out")
        ]
        examples = [
            example for batch in _by_bytes(chosen, ENCODE_BYTES) for example in encode(batch, tokenizer)
        ]
        rows = _to_rows(examples, split, data, progress)
        totals = progress.splits[split]
        totals.documents += len(examples)
        totals.tokens += sum(len(example.ids) for example in examples)
        totals.rows += len(rows)
        if rows:
            totals.shards.append(write_shard(folder / split / f"shard-{progress.parts:05d}.arrow", rows))
    progress.parts += 1
    progress.documents += len(part)


def _to_rows(examples: list[Example], split: str, data: Data, progress: Progress) -> list[Row]:
    totals = progress.splits[split]
    if data.packing:
        rows, progress.carries[split] = pack(progress.carries[split], examples, data.sequence_length)
        learned = [row for row in rows if row.has_targets]
        totals.rows_without_targets += len(rows) - len(learned)
        return learned
    rows, cut_documents, cut_tokens, left_out = one_per_row(examples, data.sequence_length)
    totals.truncated_documents += cut_documents
    totals.truncated_tokens += cut_tokens
    totals.left_out_documents += left_out
    return rows


def _by_bytes(documents: Iterable[Document], most: int) -> Iterator[list[Document]]:
    """Groups of documents with at least ``most`` characters each (but the last)."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= most:
            yield group
            group, size = [], 0
    if group:
        yield group


def _save_progress(folder: Path, progress: Progress) -> None:
    value = {
        "documents": progress.documents,
        "splits": {split: asdict(totals) for split, totals in progress.splits.items()},
        "carries": {
            split: carry and {key: value.tolist() for key, value in vars(carry).items() if value is not None}
            for split, carry in progress.carries.items()
        },
    }
    write_json(folder / PROGRESS, {"parts": progress.parts, **value})


def _resume(folder: Path) -> Progress:
    path = folder / PROGRESS
    progress = Progress()
    if path.is_file():
        value = read_json(path)
        progress = Progress(
            value["parts"],
            value["documents"],
            {split: SplitTotals(**totals) for split, totals in value["splits"].items()},
            {split: carry and _carry(carry) for split, carry in value["carries"].items()},
        )
    known = {folder / split / shard["name"] for split in SPLITS for shard in progress.splits[split].shards}
    for file in folder.rglob("*"):
        if file.is_file() and file not in known and file != path:
            file.unlink()
    return progress


def _carry(value: dict[str, Any]) -> Row:
    mask = value.get("mask")
    return Row(
        np.array(value["ids"], np.int32),
        None if mask is None else np.array(mask, bool),
        np.array(value["doc_lens"], np.int32),
    )
