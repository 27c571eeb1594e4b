"""One source to its shards, in steps that survive a kill.

Parts are tokenized by `data.rows.workers` in any order and packed here in theirs: the rows are the same
whatever the number of workers. A part becomes a shard of each split (several, where it is large); then
`data.rows.progress` records it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

from configs.schema import Data, Filters
from data.files import OpenSource
from data.manifest_shape import SPLITS
from data.places.remote import remove
from data.report import Report
from data.rows.pack import Row, best_fit, one_per_row, pack
from data.rows.parts import SHARD_TOKENS, Part, parts_of
from data.rows.progress import Progress, ProgressFile, SplitTotals
from data.rows.shards import write_shard
from data.rows.spool import read_examples
from data.rows.work import Job
from data.rows.workers import Workers
from data.tokens.encode import Example

Group = dict[str, list[Example]]
"""Examples by split."""


@dataclass(frozen=True)
class Site:
    """Where a source is built and where files that lie elsewhere are fetched to."""

    folder: Path
    fetched: Path


def build_source(
    source: OpenSource, site: Site, data: Data, filters: Filters, workers: Workers, report: Report
) -> dict[str, SplitTotals]:
    """Write every shard of ``source`` and return the totals of its splits.

    Raises:
        UmbelError: a fault in its files.
        RunFailed: the workers are killed again and again.
    """
    parts, file = parts_of(source), ProgressFile(site.folder)
    progress = file.read()
    jobs = _jobs(parts, source, site, data, filters, progress)
    told = _Told(source.name, parts, data.max_bytes, report)
    told(progress)
    # A limit in bytes is found by reading up to it.
    in_order = workers.map if data.max_bytes is None else workers.one_by_one
    for done in in_order(jobs, partial(told, progress)):
        for group in _groups(_spool(site, progress.parts)):
            pack_group(group, site.folder, data, progress)
        progress.parts += 1
        progress.bytes += done.bytes
        progress.is_cut = done.is_cut
        file.add(progress)
        _clear(parts[progress.parts - 1], _spool(site, progress.parts - 1), site)
        told(progress)
    for split in SPLITS:
        _count_carry(progress.splits[split], progress.carries[split])
    return progress.splits


def _jobs(
    parts: list[Part], source: OpenSource, site: Site, data: Data, filters: Filters, progress: Progress
) -> Iterator[Job]:
    for number in range(progress.parts, len(parts)):
        if progress.is_cut:
            return
        left = None if data.max_bytes is None else data.max_bytes - progress.bytes
        spool = _spool(site, number)
        yield Job(parts[number], source.reading, filters, data.held_out, left, site.fetched, spool)


def _spool(site: Site, part: int) -> Path:
    return site.folder / f".part-{part:05d}.tmp"


def _clear(part: Part, spool: Path, site: Site) -> None:
    """Remove what nobody needs any more: no disk holds all of what lies elsewhere."""
    spool.unlink(missing_ok=True)
    for span in part.spans:
        if span.is_last:
            remove(span.file, site.fetched)


class _Told:
    """Tells how far a source is: in bytes of its files, or of text where that is what limits it."""

    def __init__(self, name: str, parts: list[Part], max_bytes: int | None, report: Report) -> None:
        self.name, self.report = name, report
        self.ends = list(accumulate((part.size for part in parts), initial=0.0))
        self.max_bytes = max_bytes if max_bytes is not None and max_bytes < self.ends[-1] else None

    def __call__(self, progress: Progress, share: float = 0.0, size: int = 0) -> None:
        """Tell of finished parts and, of the next, ``share`` of its rows or ``size`` bytes of its text."""
        if self.max_bytes is not None:
            done = self.max_bytes if progress.is_cut else progress.bytes + size
            self.report(self.name, done, self.max_bytes, "bytes")
            return
        begin, *end = self.ends[progress.parts : progress.parts + 2]
        within = share * (end[0] - begin) if end else 0.0
        self.report(self.name, begin + within, self.ends[-1], "bytes")


def pack_group(group: Group, folder: Path, data: Data, progress: Progress) -> None:
    """Pack examples and write them as one more shard of each split that has rows."""
    number = progress.shards
    for split, examples in group.items():
        totals = progress.splits[split]
        rows = _to_rows(examples, split, data, progress)
        learned = [row for row in rows if row.has_targets]
        _count(totals, examples, rows, learned, data)
        if learned:
            shard = write_shard(folder / split / f"shard-{number:05d}.parquet", learned)
            totals.shards.append(shard)


def _groups(spool: Path) -> Iterator[Group]:
    """The examples of a part by split, about ``SHARD_TOKENS`` tokens at a time."""
    group: Group = {split: [] for split in SPLITS}
    tokens = 0
    for batch in read_examples(spool):
        for example, held_out in batch:
            group["held_out" if held_out else "train"].append(example)
            tokens += len(example.ids)
        if tokens >= SHARD_TOKENS:
            yield group
            group, tokens = {split: [] for split in SPLITS}, 0
    yield group


def _to_rows(examples: list[Example], split: str, data: Data, progress: Progress) -> list[Row]:
    if data.packing == "concat":
        rows, progress.carries[split] = pack(progress.carries[split], examples, data.sequence_length)
        return rows
    if data.packing == "best_fit":
        return best_fit(examples, data.sequence_length)
    return one_per_row(examples, data.sequence_length)


def _count(
    totals: SplitTotals, examples: Iterable[Example], rows: list[Row], learned: list[Row], data: Data
) -> None:
    most = data.sequence_length + 1
    lengths = [len(example.ids) for example in examples]
    totals.documents += len(lengths)
    totals.tokens += sum(lengths)
    totals.rows += len(learned)
    if data.packing == "none":
        totals.left_out_documents += len(rows) - len(learned)
    else:
        totals.rows_without_targets += len(rows) - len(learned)
    if data.packing == "concat":
        return
    totals.padding_tokens += sum(most - len(row.ids) for row in learned)
    cut = [
        len(example.ids) - most
        for example in examples
        if len(example.ids) > most and (data.packing == "none" or example.mask is not None)
    ]
    totals.truncated_documents += len(cut)
    totals.truncated_tokens += sum(cut)


def _count_carry(totals: SplitTotals, carry: Row | None) -> None:
    if carry is not None:
        # Of a carry's tokens the first was already a target, in the row before, if there is one.
        cut = totals.rows + totals.rows_without_targets
        totals.left_out_tokens = len(carry.ids) - (1 if cut else 0)
