from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base.errors import UmbelError
from configs.schema import Filters, Source
from data import prepare as prepare_module
from data.manifest import NAME, check_unchanged
from data.prepare import prepare
from data.rows import held_out, parts


def test_a_streaming_folder_holds_held_out_rows_and_no_other(jsonl: Any, documents: Any, config: Any) -> None:
    path = jsonl("a.jsonl", [*documents("doc", 400), {"text": ""}])
    data = config(path=str(path), mode="streaming")
    streaming, whole = prepare(data), prepare(replace(data, mode="prepared"))
    assert (streaming.mode, whole.mode) == ("streaming", "prepared")
    assert streaming.folder.parent.name == "streaming"
    assert len(streaming.rows("data", "train")) == 0
    table, other = streaming.rows("data", "held_out"), whole.rows("data", "held_out")
    assert len(table) == len(other) > 5
    for row in range(len(table)):
        assert table.row(row).ids.tolist() == other.row(row).ids.tolist()
        assert table.row(row).doc_ids.tolist() == other.row(row).doc_ids.tolist()
    assert streaming.tokenizer.hash == whole.tokenizer.hash
    assert streaming.unigram_entropy == pytest.approx(whole.unigram_entropy, rel=0.05)


def test_no_more_is_tokenized_than_is_held_out_and_a_sample(
    jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    real = held_out.encode
    monkeypatch.setattr(held_out, "encode", lambda some, way: given.append(len(some)) or real(some, way))
    monkeypatch.setattr(held_out, "SAMPLE_BYTES", 300)
    totals = prepare(config(path=str(jsonl("a.jsonl", documents("doc", 400))), mode="streaming")).manifest
    kept = totals["sources"]["data"]["held_out"]["documents"]
    assert kept < sum(given) < kept + 30


@pytest.mark.parametrize("packing", ["concat", "none"])
def test_the_scan_ends_with_enough_rows_or_enough_text(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    read: list[int] = []
    real = held_out.documents_of

    def counted(*facts: Any) -> Iterator[Any]:
        for document in real(*facts):
            read.append(document.number)
            yield document

    monkeypatch.setattr(held_out, "documents_of", counted)
    monkeypatch.setattr(held_out, "ENCODE_BYTES", 500)
    monkeypatch.setattr(held_out, "HELD_OUT_ROWS", 4)
    data = config(path=str(jsonl("a.jsonl", documents("doc", 900))), mode="streaming", packing=packing)
    assert len(prepare(data).rows("data", "held_out")) == 4
    assert 4 < len(read) < 200
    read.clear()
    monkeypatch.setattr(held_out, "HELD_OUT_ROWS", 10**6)
    monkeypatch.setattr(held_out, "SCAN_BYTES", 9000)
    prepare(replace(data, cache_dir=str(tmp_path / "other")))
    assert 50 < len(read) < 300


def test_the_size_of_a_source_is_estimated(
    jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"text": record["text"], "id": n} for n, record in enumerate(documents("doc", 2000))]
    source = Source(path=str(jsonl("a.jsonl", records)), filters=Filters(min_chars=40))
    data = config(sources={"one": source})
    whole = prepare(data).manifest["sources"]["one"]
    monkeypatch.setattr(held_out, "ENCODE_BYTES", 8000)
    monkeypatch.setattr(held_out, "SAMPLE_BYTES", 8000)
    monkeypatch.setattr(held_out, "SCAN_BYTES", 20000)
    estimate = prepare(replace(data, mode="streaming")).manifest["estimates"]["one"]
    for key in ("documents", "tokens"):
        assert estimate[key] == pytest.approx(sum(whole[s][key] for s in ("train", "held_out")), rel=0.1)
    size = whole["files"][0]["size"]
    assert estimate["bytes_per_token"] == pytest.approx(size / estimate["tokens"], rel=1e-3)


def test_a_run_that_goes_on_neither_lists_nor_reads(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl("a.jsonl", documents("doc", 400))
    data = config(path=str(path), mode="streaming")
    began_with = prepare(data).manifest

    def listed(*facts: Any) -> Any:
        raise AssertionError("listed")

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "open_sources", listed)
        assert prepare(data, began_with=began_with).fingerprint == began_with["fingerprint"]
        with pytest.raises(UmbelError, match=r"data\.sequence_length: was 16, now is 8"):
            prepare(replace(data, sequence_length=8), began_with=began_with)
    elsewhere = replace(data, cache_dir=str(tmp_path / "other"), tokenizer=replace(data.tokenizer))
    assert prepare(elsewhere, began_with=began_with).manifest == began_with


def test_filters_that_leave_nothing_are_told(jsonl: Any, documents: Any, config: Any) -> None:
    filters = Filters(min_chars=9999, matches="word")
    source = Source(path=str(jsonl("a.jsonl", documents("doc", 40))), filters=filters)
    # A tokenizer is trained on nothing: the bytes alone.
    for mode in ("streaming", "prepared"):
        said = r"sources\.one: holds no text: none of its 40 documents passes its filters \(min_chars=9999, "
        with pytest.raises(UmbelError, match=said):
            prepare(config(sources={"one": source}, mode=mode))


def test_best_fit_while_streaming_is_refused(jsonl: Any, documents: Any, config: Any) -> None:
    with pytest.raises(UmbelError, match=r"data\.packing: best_fit looks at many documents at once"):
        prepare(config(path=str(jsonl("a.jsonl", documents("doc", 9))), mode="streaming", packing="best_fit"))


def test_chats_and_nothing_held_out(jsonl: Any, config: Any) -> None:
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ho ho"}]
    chats = [{"messages": [{"role": "system", "content": str(n)}, *chat]} for n in range(90)]
    data = config(path=str(jsonl("a.jsonl", chats)), mode="streaming", packing="none", sequence_length=200)
    table = prepare(data).rows("data", "held_out")
    mask = table.row(0).mask
    assert mask is not None and 0 < mask.sum() < len(mask)
    none = prepare(replace(data, held_out=0.0))
    assert len(none.rows("data", "held_out")) == 0
    assert none.unigram_entropy > 0
    assert none.manifest["estimates"]["data"]["documents"] == 90


def test_an_interrupted_scan_begins_again(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config(path=str(jsonl("a.jsonl", documents("doc", 400))), mode="streaming")
    whole = prepare(data)
    (whole.folder / NAME).unlink()
    (whole.folder / "data/held_out/.shard-00000.parquet.1.tmp").write_bytes(b"half")
    again = prepare(data)
    assert again.manifest == whole.manifest
    assert not list(again.folder.rglob("*.tmp"))
    shutil.rmtree(again.folder)


def test_parts_are_whole_and_in_order() -> None:
    from data.files import OpenSource, Reading, SourceFile

    generator = np.random.default_rng(1)
    files = []
    for n in range(60):
        rows = int(generator.integers(0, 5000))
        blocks = tuple((first, first) for first in range(0, max(rows, 1), 700))
        files.append(SourceFile(f"{n}", f"/{n}", "jsonl", rows * 4000, "sha256:0", rows, blocks))
    source = OpenSource("a", "data", Reading("text"), tuple(files))
    cut = parts.parts_of(source)
    spans = [span for part in cut for span in part.spans]
    numbers = [number for span in spans for number in (span.first + span.start, span.first + span.stop)]
    assert numbers[0] == 0 and numbers[-1] == source.rows
    assert numbers[1:-1:2] == numbers[2::2]
    assert all(part.size >= parts.PART_BYTES for part in cut[:-1])
    assert all(part.size <= parts.PART_BYTES + 700 * 4000 for part in cut)
    assert sum(part.size for part in cut) == pytest.approx(sum(file.size for file in files))
    assert sum(span.is_last for span in spans) == sum(file.rows > 0 for file in files)


def test_a_library_that_cuts_texts_otherwise_is_found_out(
    jsonl: Any, documents: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no row is held out."""
    path = jsonl("a.jsonl", documents("doc", 50))
    data = config(path=str(path), mode="streaming", held_out=0.0)
    old = prepare(data).manifest
    real = held_out.encode

    def other(*facts: Any) -> Any:
        return [replace(example, ids=example.ids[::-1]) for example in real(*facts)]

    monkeypatch.setattr(held_out, "encode", other)
    new = prepare(replace(data, cache_dir=str(path.parent / "other"))).manifest
    with pytest.raises(UmbelError, match="now give other rows"):
        check_unchanged(old, new)
