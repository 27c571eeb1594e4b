"""What is done with a part of a source: read, filter, split off what is held out, tokenize."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Filters
from data.document import Document, is_held_out, take_bytes
from data.files import Reading
from data.rows.parts import Part, check_still, documents_of
from data.rows.spool import Split, write_examples
from data.tokens.encode import encode
from data.tokens.tokenizer import TextTokenizer

ENCODE_BYTES = 2 << 20
"""Characters per call of the tokenizer: bounds its memory."""


@dataclass(frozen=True)
class Job:
    """A part, and all it takes to tokenize it into the file ``spool``. ``max_bytes`` is how much text the
    source may still give; ``fetched`` the folder of files that lie elsewhere."""

    part: Part
    reading: Reading
    filters: Filters
    held_out: float
    max_bytes: int | None
    fetched: Path
    spool: Path


@dataclass
class Done:
    """What a job came to, where ``max_bytes`` limits it: text read, in bytes; whether some was cut off."""

    bytes: int = 0
    is_cut: bool = False


Tick = Callable[[float, int], None]
"""Told, in the midst of a job, which share of its rows is done, and how many bytes of text."""


def work(job: Job, tokenizer: TextTokenizer, tick: Tick = lambda *_: None) -> Done:
    """Do a job.

    Raises:
        UmbelError: a fault in the part's files, or a chat that cannot be learned from.
    """
    done = Done()
    documents = documents_of(job.part.spans, job.reading, job.filters, job.fetched)
    kept = _within(documents, job.max_bytes, done)

    def batches() -> Iterator[list[Split]]:
        for batch in by_size(kept, ENCODE_BYTES):
            yield _encoded(batch, job, tokenizer)
            tick((batch[-1].number + 1 - job.part.first) / job.part.rows, done.bytes)

    write_examples(job.spool, batches())
    if done.is_cut:  # in the midst of a file
        for span in job.part.spans:
            check_still(span.file)
    return done


def by_size(documents: Iterable[Document], most: int) -> Iterator[list[Document]]:
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


def _within(documents: Iterable[Document], max_bytes: int | None, done: Done) -> Iterator[Document]:
    """At most that much text. Tells ``done`` how much it was."""
    if max_bytes is None:
        yield from documents
        return
    read = 0

    def counted() -> Iterator[Document]:
        nonlocal read
        for document in documents:
            read += len(document.text.encode())
            yield document

    for document in take_bytes(counted(), max_bytes):
        done.bytes += len(document.text.encode())
        yield document
    done.is_cut = read > done.bytes


def _encoded(documents: list[Document], job: Job, tokenizer: TextTokenizer) -> list[Split]:
    held_out = [is_held_out(document, job.held_out) for document in documents]
    return list(zip(encode(documents, tokenizer), held_out, strict=True))
