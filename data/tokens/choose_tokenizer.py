"""Which tokenizer a run has: the one it names, its pretrained model's, or one trained on its own data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from base.files import sha256_json
from configs.schema import Data
from data.document import is_held_out, take_bytes
from data.files import OpenSource
from data.folders import locked
from data.rows.parts import documents_of, whole
from data.sources import FETCHED, sources_of, weights_of
from data.tokens.tokenizer import FILE, TextTokenizer, load_tokenizer, train_tokenizer

Say = Callable[[str], None]


def choose_tokenizer(
    data: Data, sources: dict[str, OpenSource], cache: Path, pretrained: str | None, say: Say
) -> TextTokenizer:
    """The tokenizer of the config, else the pretrained model's, else one trained on the data and cached."""
    chats = any(source.reading.format == "messages" for source in sources.values())
    given = data.tokenizer.path or pretrained
    tokenizer = load_tokenizer(given) if given else _trained(data, sources, cache, chats, say)
    return tokenizer.for_chats() if chats else tokenizer


def _trained(data: Data, sources: dict[str, OpenSource], cache: Path, chats: bool, say: Say) -> TextTokenizer:
    vocab_size, train_bytes = data.tokenizer.vocab_size, data.tokenizer.train_bytes
    described = {
        name: [
            asdict(source.reading),
            asdict(sources_of(data)[name].filters),
            [[file.name, file.pin] for file in source.files],
        ]
        for name, source in sources.items()
    }
    settings = [vocab_size, train_bytes, chats, data.held_out, data.max_bytes, weights_of(data)]
    folder = cache / "tokenizers" / sha256_json([settings, described])[:20]
    if (folder / FILE).is_file():
        return load_tokenizer(folder)
    with locked(folder, say):
        if not (folder / FILE).is_file():
            say(f"training a tokenizer of {vocab_size} on {train_bytes / 1e6:g} MB of the data")
            tokenizer = train_tokenizer(_sample(data, sources, cache), vocab_size, chats=chats)
            tokenizer.save(folder)
    return load_tokenizer(folder)


def _sample(data: Data, sources: dict[str, OpenSource], cache: Path) -> Iterator[str]:
    """The first texts of each source's train split, as many bytes of each as its weight says."""
    weights = weights_of(data)
    for name, weight in weights.items():
        source, filters = sources[name], sources_of(data)[name].filters
        documents = documents_of(whole(source), source.reading, filters, cache / FETCHED)
        if data.max_bytes is not None:
            documents = take_bytes(documents, data.max_bytes)
        kept = (document for document in documents if not is_held_out(document, data.held_out))
        share = int(data.tokenizer.train_bytes * weight / sum(weights.values()))
        for document in take_bytes(kept, share):
            if document.messages is None:
                yield document.text
            else:
                yield from (str(message.get("content") or "") for message in document.messages)
