"""Streaming: what is made before the run, of a source's first documents. Held-out rows, and how big it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from configs.schema import Data, Filters
from data.document import Document, is_held_out
from data.files import OpenSource
from data.places.remote import remove
from data.rows.build import Site, pack_group
from data.rows.pack import learned
from data.rows.parts import documents_of, whole
from data.rows.progress import Progress, SplitTotals
from data.rows.work import ENCODE_BYTES, by_size
from data.tokens.encode import Example, encode
from data.tokens.tokenizer import TextTokenizer

HELD_OUT_ROWS = 256
"""Rows per source, at most: an evaluation, and no second corpus."""

SCAN_BYTES = 64 << 20
"""Text that is looked at for them, at most. All of it is read; of it only what is held out is tokenized."""

SAMPLE_BYTES = 1 << 18
"""Text from the beginning that is tokenized, whatever it is, to know how many bytes make a token."""


@dataclass(frozen=True)
class HeldOut:
    """Totals by split; the source's size as its beginning suggests; how often each id was a target there;
    and the hash of that beginning's tokens: another version of a library may cut a text otherwise."""

    totals: dict[str, SplitTotals]
    estimate: dict[str, float]
    target_counts: npt.NDArray[np.int64]
    sample: str


@dataclass
class _Scan:
    """The beginning of a source. Sizes are bytes of text; ``rows`` counts blank ones and those that are
    filtered out, too."""

    rows: int = 0
    documents: int = 0
    bytes: int = 0
    held_out: list[Example] = field(default_factory=list)
    sample: list[Example] = field(default_factory=list)
    sample_bytes: int = 0


def build_held_out(
    source: OpenSource, site: Site, data: Data, filters: Filters, tokenizer: TextTokenizer
) -> HeldOut:
    """Write a source's held-out rows, from a scan of its beginning that ends with enough of them, with
    ``SCAN_BYTES`` of text, or with the source.

    Raises:
        UmbelError: a fault in its files.
    """
    documents = documents_of(whole(source), source.reading, filters, site.fetched)
    scan, progress = _scan(documents, source, data, tokenizer), Progress()
    pack_group({"train": [], "held_out": _first_rows(scan.held_out, data)}, site.folder, data, progress)
    for file in source.files:
        remove(file, site.fetched)
    counts, sample = _target_counts(scan.sample, tokenizer), _sha256(scan.sample)
    return HeldOut(progress.splits, _estimate(source, scan), counts, sample)


def _scan(documents: Iterable[Document], source: OpenSource, data: Data, tokenizer: TextTokenizer) -> _Scan:
    scan = _Scan()
    for batch in by_size(documents, ENCODE_BYTES):
        scan.rows = batch[-1].number + 1
        scan.documents += len(batch)
        scan.bytes += sum(len(document.text.encode()) for document in batch)
        held_out = [document for document in batch if is_held_out(document, data.held_out)]
        scan.held_out += encode(held_out, tokenizer)
        if not scan.sample:
            sample = next(by_size(batch, SAMPLE_BYTES))
            scan.sample = encode(sample, tokenizer)
            scan.sample_bytes = sum(len(document.text.encode()) for document in sample)
        if scan.bytes >= SCAN_BYTES or _is_enough(scan.held_out, data):
            return scan
    scan.rows = source.rows
    return scan


def _is_enough(examples: list[Example], data: Data) -> bool:
    if data.packing == "none":
        return len(examples) >= HELD_OUT_ROWS
    return sum(len(example.ids) for example in examples) > HELD_OUT_ROWS * data.sequence_length


def _first_rows(examples: list[Example], data: Data) -> list[Example]:
    """As much of the examples as ``HELD_OUT_ROWS`` rows hold."""
    if data.packing == "none":
        return examples[:HELD_OUT_ROWS]
    chosen, room = [], HELD_OUT_ROWS * data.sequence_length + 1
    for example in examples:
        if room <= 0:
            break
        mask = None if example.mask is None else example.mask[:room]
        chosen.append(Example(example.ids[:room], mask, example.document))
        room -= len(example.ids)
    return chosen


def _estimate(source: OpenSource, scan: _Scan) -> dict[str, float]:
    """``documents`` and ``tokens`` of the whole source, and the bytes of its files (as they lie on the disk,
    compressed or not) that make a token."""
    tokens = sum(len(example.ids) for example in scan.sample)
    if not tokens:
        return {"documents": 0, "tokens": 0, "bytes_per_token": 0.0}
    times = source.rows / scan.rows
    whole_tokens = scan.bytes * times * tokens / scan.sample_bytes
    size = sum(file.size for file in source.files)
    return {
        "documents": round(scan.documents * times),
        "tokens": round(whole_tokens),
        "bytes_per_token": round(size / whole_tokens, 4),
    }


def _target_counts(examples: list[Example], tokenizer: TextTokenizer) -> npt.NDArray[np.int64]:
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for example in examples:
        targets = learned(len(example.ids), np.array([len(example.ids)], np.int32), example.mask)
        counts += np.bincount(example.ids[targets], minlength=tokenizer.vocab_size)
    return counts


def _sha256(examples: list[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example.ids).to_bytes(8, "big") + example.ids.astype("<i4").tobytes())
    return digest.hexdigest()
