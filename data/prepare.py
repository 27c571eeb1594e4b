"""From a run's data config to a folder of tokenized rows: prepared once, found again by what defines it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from base.errors import UmbelError
from base.files import sha256_json, write_json
from configs.schema import Data, RunConfig
from data.build import PROGRESS, SplitTotals, build_source
from data.document import OpenSource, is_held_out, take_bytes
from data.manifest import NAME, SPLITS, Manifest, definition_of, fingerprint
from data.prepared import Prepared, open_prepared
from data.pretrained import tokenizer_source
from data.sources import key_of, open_sources, weights_of
from data.tokenizer import FILE, TextTokenizer, load_tokenizer, train_tokenizer

Say = Callable[[str], None]


def prepare(data: Data, *, pretrained: str | None = None, say: Say = lambda _: None) -> Prepared:
    """Tokenize and pack a run's data, or find it already done.

    Interrupted work goes on where it was; of two processes one works and the other waits. ``pretrained`` is
    a local model folder, whose tokenizer is taken when ``data.tokenizer.path`` is None; without either a
    tokenizer is trained on the data's train split.

    Raises:
        UmbelError: any fault in the sources or the tokenizer, too little text for one row, nothing to
            learn in the rows, or a cache folder that cannot be written.
    """
    cache = cache_folder(data)
    sources = open_sources(data, say)
    try:
        tokenizer = choose_tokenizer(data, sources, cache, pretrained, say)
        definition = definition_of(data, sources, tokenizer)
        folder = cache / "prepared" / sha256_json(definition)[:20]
        # Looked for first without the lock: a finished folder may be on a read-only file system.
        if not (folder / NAME).is_file():
            with locked(folder, say):
                if not (folder / NAME).is_file():
                    _build(folder, definition, data, sources, tokenizer, say)
    except OSError as error:
        where = str(error.filename or cache)
        fix = "free space there, or set data.cache_dir"
        raise UmbelError(f"cannot be written ({error.strerror})", where=where, fix=fix) from error
    return open_prepared(folder)


def prepare_run(config: RunConfig, say: Say = lambda _: None) -> Prepared:
    """`prepare` for a whole run: a pretrained model brings its tokenizer."""
    return prepare(config.data, pretrained=tokenizer_source(config.model), say=say)


def cache_folder(data: Data) -> Path:
    """Where prepared rows live: data.cache_dir, $UMBEL_CACHE or ~/.cache/umbel."""
    return Path(data.cache_dir or os.environ.get("UMBEL_CACHE") or "~/.cache/umbel").expanduser()


@contextlib.contextmanager
def locked(folder: Path, say: Say = lambda _: None) -> Iterator[None]:
    """Hold the lock beside ``folder``; the kernel frees it however its holder ends.

    Whoever holds it is alone, so what a killed writer left half written is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that prepares the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        for half_written in folder.rglob(".*.tmp"):
            half_written.unlink()
        yield


def choose_tokenizer(
    data: Data, sources: dict[str, OpenSource], cache: Path, pretrained: str | None, say: Say
) -> TextTokenizer:
    """The tokenizer of the config, else the pretrained model's, else one trained on the data and cached."""
    chats = any(source.format == "messages" for source in sources.values())
    given = data.tokenizer.path or pretrained
    tokenizer = load_tokenizer(given) if given else _trained(data, sources, cache, chats, say)
    return tokenizer.for_chats() if chats else tokenizer


def _trained(data: Data, sources: dict[str, OpenSource], cache: Path, chats: bool, say: Say) -> TextTokenizer:
    vocab_size, train_bytes = data.tokenizer.vocab_size, data.tokenizer.train_bytes
    files = {name: [file.pin for file in source.files] for name, source in sources.items()}
    settings = [vocab_size, train_bytes, chats, data.held_out, data.max_bytes, data.format, weights_of(data)]
    folder = cache / "tokenizers" / sha256_json([settings, files])[:20]
    if (folder / FILE).is_file():
        return load_tokenizer(folder)
    with locked(folder, say):
        if not (folder / FILE).is_file():
            say(f"training a tokenizer of {vocab_size} on {train_bytes / 1e6:g} MB of the data")
            tokenizer = train_tokenizer(_sample(data, sources), vocab_size, chats=chats)
            tokenizer.save(folder)
    return load_tokenizer(folder)


def _sample(data: Data, sources: dict[str, OpenSource]) -> Iterator[str]:
    """The first texts of each source's train split, as many bytes of each as its weight says."""
    weights = weights_of(data)
    for name, weight in weights.items():
        kept = (
            document for document in sources[name].documents() if not is_held_out(document, data.held_out)
        )
        share = int(data.tokenizer.train_bytes * weight / sum(weights.values()))
        for document in take_bytes(kept, share):
            if document.messages is None:
                yield document.text
            else:
                yield from (str(message.get("content") or "") for message in document.messages)


def _build(
    folder: Path,
    definition: Manifest,
    data: Data,
    sources: dict[str, OpenSource],
    tokenizer: TextTokenizer,
    say: Say,
) -> None:
    """Write every source, then the manifest. Bad input leaves nothing; a kill leaves work to resume."""
    try:
        for name, source in sources.items():
            totals = build_source(source, folder / name, data, tokenizer, say)
            _check_not_empty(name, totals, data)
            definition["sources"][name] |= {split: asdict(totals[split]) for split in SPLITS}
    except UmbelError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    tokenizer.save(folder / "tokenizer")
    manifest = definition | {
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "eos_id": tokenizer.eos_id,
        "sizes": {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in sorted(folder.rglob("shard-*.arrow"))
        },
    }
    manifest["unigram_entropy"] = unigram_entropy(Prepared(folder, manifest))
    manifest["fingerprint"] = fingerprint(manifest)
    write_json(folder / NAME, manifest)
    for file in folder.glob(f"*/{PROGRESS}"):
        file.unlink()


def unigram_entropy(prepared: Prepared) -> float:
    """Entropy, in nats, of the targets' frequencies over the train split of all sources."""
    tables = [prepared.rows(source, "train") for source in prepared.sources]
    counts = np.sum([table.target_counts(prepared.vocab_size) for table in tables], axis=0)
    frequencies = counts[counts > 0] / counts.sum()
    return round(float(-(frequencies * np.log(frequencies)).sum()), 6)


def _check_not_empty(name: str, totals: dict[str, SplitTotals], data: Data) -> None:
    train, held_out = totals["train"], totals["held_out"]
    where = key_of(data, name)
    if not train.documents and not held_out.documents:
        raise UmbelError("holds no text", where=where, fix="check its path and its field")
    if train.rows or name not in weights_of(data):
        return
    if train.rows_without_targets or train.truncated_documents:
        raise UmbelError(
            f"nothing to learn: {_all_cut(train, data)}",
            where=where,
            fix="set a longer data.sequence_length",
        )
    need = data.sequence_length + 1 if data.packing else 2
    raise UmbelError(
        f"too little text to train on: {train.tokens} tokens ({held_out.tokens} more are held out), "
        f"and one row needs {need}",
        where=where,
        fix="give it more text, or lower data.sequence_length or data.held_out",
    )


def _all_cut(train: SplitTotals, data: Data) -> str:
    """Why chats (a text's tokens are all learned) made no row."""
    if data.packing:
        what = f"none of the {train.rows_without_targets} rows of data.sequence_length={data.sequence_length}"
        return f"{what} reaches an answer"
    return (
        f"data.sequence_length={data.sequence_length} cuts {train.truncated_documents} of "
        f"{train.documents} examples ({train.tokens // train.documents} tokens each on average) "
        "before their first answer"
    )
