from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from configs.schema import Data, Filters, Phase, Source
from data.card import data_card
from data.prepare import prepare


@pytest.fixture
def two(jsonl: Any, documents: Any, config: Any) -> Data:
    one = Source(
        path=str(jsonl("one.jsonl", documents("one", 300))),
        license="apache-2.0",
        language="en",
        filters=Filters(excludes=r"a|b", min_chars=3),
        weight=3.0,
    )
    other = Source(path=str(jsonl("other.jsonl", documents("other", 90))), license="mit")
    data: Data = config(sources={"one": one, "other": other})
    return data


@pytest.mark.parametrize("changes", [{}, {"packing": "best_fit"}, {"mode": "streaming", "packing": "none"}])
def test_the_card_is_one_that_the_hub_reads(two: Data, changes: dict[str, Any]) -> None:
    prepared = prepare(replace(two, **changes))
    text = (prepared.folder / "README.md").read_text()
    assert text == data_card(prepared.manifest, replace(two, **changes))
    card = DatasetCard(text)
    assert card.data.license == ["apache-2.0", "mit"]
    assert card.data.language == ["en"]
    assert card.data.task_categories == ["text-generation"]
    assert card.data.size_categories == ["n<1K"]
    assert "umbel" in (card.data.tags or [])


def test_what_it_says(two: Data) -> None:
    data = replace(two, phases=[Phase(from_tokens=1e6, weights={"other": 1.0})])
    prepared = prepare(data)
    text = data_card(prepared.manifest, data)
    totals = prepared.manifest["sources"]["other"]
    documents = totals["train"]["documents"] + totals["held_out"]["documents"]
    line, _ = re.findall(r"^\| other \| \d.*", text, re.MULTILINE)
    assert line.split(" | ")[1] == str(documents)
    assert "| mit | not declared |" in line
    assert r'excludes: "a\|b", min_chars: 3' in text  # a bar of its own, not a cell's end
    assert prepared.fingerprint in text
    assert "| one | 3 | 0 |" in text
    assert "| source | from the start | from 1,000,000 tokens |" in text


def test_it_names_no_place_of_this_machine(tmp_path: Path, two: Data) -> None:
    assert str(tmp_path) not in data_card(prepare(two).manifest, two)


def test_nothing_declared_is_said_as_such(jsonl: Any, documents: Any, config: Any) -> None:
    data = config(path=str(jsonl("a.jsonl", documents("doc", 90))))
    text = data_card(prepare(data).manifest, data)
    card = DatasetCard(text)
    assert card.data.license is None
    assert "not declared" in text
