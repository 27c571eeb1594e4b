"""Small corpora of known content, prepared in a temporary cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Data, Source, Tokenizer
from data.prepare import prepare
from data.prepared import Prepared

Write = Callable[[str, list[Any]], Path]


@pytest.fixture
def jsonl(tmp_path: Path) -> Write:
    """Write records (or raw lines) to a JSONL file."""

    def write(name: str, records: list[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write


def numbered(tag: str, count: int) -> list[dict[str, str]]:
    """Documents of uneven length, no two alike."""
    return [
        {"text": f"{tag} {number}: " + "word " * (3 + number % 17) + str(number * 7)}
        for number in range(count)
    ]


def small_data(tmp_path: Path, **changes: Any) -> Data:
    settings: dict[str, Any] = {
        "sequence_length": 16,
        "held_out": 0.1,
        "cache_dir": str(tmp_path / "cache"),
        "tokenizer": Tokenizer(vocab_size=300),
    }
    return Data(**settings | changes)


@pytest.fixture
def documents() -> Callable[[str, int], list[dict[str, str]]]:
    return numbered


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Data]:
    """A data config of short rows, with a cache of its own; keywords change it."""
    return partial(small_data, tmp_path)


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Three sources of uneven size, packed."""
    folder = tmp_path_factory.mktemp("mixture")
    sources = {}
    for name, count in (("small", 40), ("middle", 120), ("large", 300)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in numbered(name, count)))
        sources[name] = Source(path=str(path))
    return prepare(small_data(folder, sources=sources))
