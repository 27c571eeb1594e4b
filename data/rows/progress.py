"""Where the work on a source stands: a line for every finished part, added when its shards are on the disk.

Whoever comes next trusts the whole lines, removes the files that they do not name, and goes on.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from base.files import fsync_dir
from data.manifest_shape import SPLITS
from data.rows.pack import Row
from data.rows.shards import copy_of

NAME = "progress.jsonl"


@dataclass
class SplitTotals:
    """What one split of one source came to. Nothing that is left out goes uncounted."""

    documents: int = 0
    tokens: int = 0
    rows: int = 0
    padding_tokens: int = 0  # not concat: what rows lack to sequence_length + 1
    truncated_documents: int = 0  # longer than a row, and cut
    truncated_tokens: int = 0
    left_out_documents: int = 0  # packing=none: nothing left to learn
    left_out_tokens: int = 0  # concat: the end of the stream, too short for a row
    rows_without_targets: int = 0  # left out, for nothing in them is learned
    shards: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Progress:
    """Finished parts and what they came to; ``carries`` are the tokens that did not fill a row.

    ``bytes`` counts the text read where ``data.max_bytes`` limits it, and ``is_cut`` says that it did.
    """

    parts: int = 0
    bytes: int = 0
    is_cut: bool = False
    splits: dict[str, SplitTotals] = field(default_factory=lambda: {split: SplitTotals() for split in SPLITS})
    carries: dict[str, Row | None] = field(default_factory=lambda: dict.fromkeys(SPLITS))

    @property
    def shards(self) -> int:
        """The number of the next shard."""
        return max(_number(totals.shards[-1]) + 1 if totals.shards else 0 for totals in self.splits.values())


def _number(shard: dict[str, Any]) -> int:
    return int(Path(shard["name"]).stem.rpartition("-")[2])


class ProgressFile:
    """Reads where the work in ``folder`` stands, and adds to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._written = dict.fromkeys(SPLITS, 0)

    def read(self) -> Progress:
        """What is finished. What an interrupted part left is removed."""
        progress = Progress()
        if self.path.is_file():
            progress = self._parse()
        known = {self.path}
        for split in SPLITS:
            self._written[split] = len(progress.splits[split].shards)
            shards = [self.path.parent / split / shard["name"] for shard in progress.splits[split].shards]
            known.update(shards, map(copy_of, shards))
        for file in self.path.parent.rglob("*"):
            if file.is_file() and file not in known:
                file.unlink()
        return progress

    def add(self, progress: Progress) -> None:
        """Record one more part: the totals so far, and the shards that are new."""
        # Not asdict, which would copy every shard there is for each part.
        totals = {split: dict(vars(progress.splits[split])) for split in SPLITS}
        new = {split: totals[split].pop("shards")[self._written[split] :] for split in SPLITS}
        carries = {split: carry and _plain(carry) for split, carry in progress.carries.items()}
        line = {
            "parts": progress.parts,
            "bytes": progress.bytes,
            "is_cut": progress.is_cut,
            "splits": totals,
            "shards": new,
            "carries": carries,
        }
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            fsync_dir(self.path.parent)
        for split in SPLITS:
            self._written[split] += len(new[split])

    def _parse(self) -> Progress:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # killed while it was written
            os.truncate(self.path, len(whole))
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            return Progress()
        last = lines[-1]
        splits = {
            split: SplitTotals(
                **last["splits"][split], shards=[shard for line in lines for shard in line["shards"][split]]
            )
            for split in SPLITS
        }
        carries = {split: carry and _row(carry) for split, carry in last["carries"].items()}
        return Progress(last["parts"], last["bytes"], last["is_cut"], splits, carries)


def _plain(row: Row) -> dict[str, Any]:
    return {key: value.tolist() for key, value in row._asdict().items() if value is not None}


def _row(value: dict[str, Any]) -> Row:
    mask = np.array(value["mask"], bool) if "mask" in value else None
    ids, doc_lens = np.array(value["ids"], np.int32), np.array(value["doc_lens"], np.int32)
    return Row(ids, mask, doc_lens, np.array(value["doc_ids"], np.int64))
