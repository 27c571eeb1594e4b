"""The making of a run's data folder: its rows, its tokenizer, its card, and last its manifest."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from base.errors import RunFailed, UmbelError
from base.files import write_text
from configs.schema import Data, Filters
from data.card import data_card
from data.files import OpenSource
from data.manifest import NAME, Manifest, about, fingerprint, write_manifest
from data.manifest_shape import SPLITS
from data.places.retry import BadFile, ChangedFile
from data.prepared import TOKENIZER, Prepared
from data.report import Report
from data.rows.build import Site, build_source
from data.rows.enough import check_enough, no_documents
from data.rows.held_out import build_held_out
from data.rows.progress import NAME as PROGRESS
from data.rows.workers import Workers, cores
from data.sources import sources_of
from data.tokens.tokenizer import TextTokenizer

CARD = "README.md"

COUNTED_SHARDS = 100
"""Shards of a source whose targets are counted for the entropy: half a billion tokens, read in seconds."""


@dataclass(frozen=True)
class Making:
    """The making of a folder. Bad input leaves nothing of it; a kill, or a file that cannot be had, leaves
    work to resume.

    ``fetched`` is the folder for files that lie elsewhere, ``report`` is told how far the work is.
    """

    folder: Path
    fetched: Path
    data: Data
    sources: dict[str, OpenSource]
    tokenizer: TextTokenizer
    report: Report

    def make(self, manifest: Manifest, workers: int | None) -> None:
        """Write every source, then what describes them, the manifest last."""
        try:
            self.tokenizer.save(self.folder / TOKENIZER)
            if self.data.mode == "streaming":
                added = self._held_out(manifest)
            else:
                added = self._rows(manifest, workers or cores())
        except (RunFailed, BadFile, ChangedFile):
            raise  # another day the same files may be there again: what is finished is kept
        except UmbelError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        manifest |= added | {
            "vocab_size": self.tokenizer.vocab_size,
            "pad_id": self.tokenizer.pad_id,
            "eos_id": self.tokenizer.eos_id,
            "about": about(self.data),
            "sizes": {
                file.relative_to(self.folder).as_posix(): file.stat().st_size
                for file in sorted(self.folder.rglob("shard-*.parquet"))
            },
        }
        manifest["fingerprint"] = fingerprint(manifest)
        write_text(self.folder / CARD, data_card(manifest, self.data))
        write_manifest(self.folder / NAME, manifest)
        for file in self.folder.glob(f"*/{PROGRESS}"):
            file.unlink()

    def _rows(self, manifest: Manifest, workers: int) -> Manifest:
        """Prepared mode: all rows."""
        with Workers(workers, self.tokenizer, self.folder / TOKENIZER) as pool:
            for name, source in self.sources.items():
                totals = build_source(
                    source, self._site(name), self.data, self._filters(name), pool, self.report
                )
                check_enough(source, totals, self.data)
                manifest["sources"][name] |= {split: asdict(totals[split]) for split in SPLITS}
        prepared = Prepared(self.folder, manifest)
        tables = [prepared.rows(name, "train") for name in prepared.sources]
        vocab_size = self.tokenizer.vocab_size
        counts = np.sum([table.target_counts(vocab_size, COUNTED_SHARDS) for table in tables], axis=0)
        return {"unigram_entropy": entropy(counts)}

    def _held_out(self, manifest: Manifest) -> Manifest:
        """Streaming mode: held-out rows, and how big each source seems to be."""
        estimates, counts = {}, np.zeros(self.tokenizer.vocab_size, np.int64)
        for number, (name, source) in enumerate(self.sources.items(), 1):
            found = build_held_out(source, self._site(name), self.data, self._filters(name), self.tokenizer)
            if not found.estimate["documents"]:
                raise no_documents(source, self._filters(name))
            manifest["sources"][name] |= {split: asdict(found.totals[split]) for split in SPLITS}
            manifest["sources"][name]["sample"] = found.sample
            estimates[name] = found.estimate
            counts += found.target_counts
            self.report("held-out rows", number, len(self.sources), "sources")
        return {"estimates": estimates, "unigram_entropy": entropy(counts)}

    def _site(self, name: str) -> Site:
        return Site(self.folder / name, self.fetched)

    def _filters(self, name: str) -> Filters:
        return sources_of(self.data)[name].filters


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """In nats, of the frequencies that counts make."""
    frequencies = counts[counts > 0] / counts.sum()
    return round(float(-(frequencies * np.log(frequencies)).sum()), 6)
