from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from base.errors import UmbelError
from configs.schema import Data, Filters, Source
from data.files import OpenSource, Reading, SourceFile
from data.manifest import (
    NAME,
    VERSION,
    Manifest,
    check_same_settings,
    check_unchanged,
    definition_of,
    fingerprint,
    folder_name,
    read_manifest,
    write_manifest,
)
from data.prepare import open_from_manifest, prepare
from data.tokens.tokenizer import TextTokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(["some words"], 300)


def opened(files: int, blocks: int = 1) -> OpenSource:
    cuts = tuple((1000 * n, 4096 * n) for n in range(blocks))
    found = tuple(
        SourceFile(
            f"part-{n:06d}.jsonl", f"/x/part-{n:06d}.jsonl", "jsonl", 10**7, f"sha256:{n:064d}", 9000, cuts
        )
        for n in range(files)
    )
    return OpenSource("big", "data.sources.big", Reading("text"), found)


def defined(data: Data, source: OpenSource, tokenizer: TextTokenizer) -> Manifest:
    manifest = definition_of(data, {"big": source}, tokenizer)
    return manifest | {"fingerprint": fingerprint(manifest)}


DATA = Data(sources={"big": Source(path="/x")})


def test_what_changed_is_named(tokenizer: TextTokenizer) -> None:
    old = defined(DATA, opened(3), tokenizer)
    check_unchanged(old, copy.deepcopy(old))

    def refused(what: str, change: Callable[[Manifest], Any]) -> None:
        new = json.loads(json.dumps(old))
        change(new)
        new["fingerprint"] = fingerprint(new)
        with pytest.raises(UmbelError, match=what):
            check_unchanged(old, new)

    source = lambda new: new["sources"]["big"]  # noqa: E731
    refused(
        r"source big: part-000001\.jsonl: has changed .*sha256 0{12}, now sha256 ffff",
        lambda new: source(new)["files"][1].update(pin="sha256:ffff"),
    )
    refused(r"part-000002\.jsonl: is gone", lambda new: source(new)["files"].pop())
    refused(r"x\.jsonl: is new", lambda new: source(new)["files"].append({"name": "x.jsonl"}))
    refused(
        r"filters: was {}, now is {\"min_chars\": 9}", lambda new: source(new)["filters"].update(min_chars=9)
    )
    refused("big: template: was None, now is {title}", lambda new: source(new).update(template="{title}"))
    refused("big: revision: was None, now is abc", lambda new: source(new).update(revision="abc"))
    refused("big: is gone|source big", lambda new: new["sources"].clear())
    refused(r"data\.packing: was concat, now is none", lambda new: new.update(packing="none"))
    refused(r"data\.mode", lambda new: new.update(mode="streaming"))
    refused(
        r"data\.tokenizer: the tokenizer \(ffff\) is not the one the data was made with",
        lambda new: new.update(tokenizer_hash="ffff"),
    )
    refused("now give other rows", lambda new: source(new).update(train={"rows": 1}))


def test_what_is_said_of_a_source_is_no_part_of_it(tokenizer: TextTokenizer) -> None:
    said = replace(DATA, sources={"big": Source(path="/y", license="mit", language="en", weight=3)})
    old, new = (defined(data, opened(3), tokenizer) for data in (DATA, said))
    assert old["fingerprint"] == new["fingerprint"]
    assert folder_name(old) == folder_name(new)


def test_a_manifest_of_another_version_is_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    manifest = defined(DATA, opened(1), tokenizer)
    write_manifest(tmp_path / NAME, manifest)
    assert read_manifest(tmp_path) == json.loads(json.dumps(manifest))
    for version, fix in ((VERSION + 1, "install a newer Umbel"), (2, "prepare the data again")):
        write_manifest(tmp_path / NAME, manifest | {"version": version})
        with pytest.raises(UmbelError, match=rf"version {version}, not {VERSION}; {fix}"):
            read_manifest(tmp_path)
        with pytest.raises(UmbelError, match=fix):
            check_unchanged(manifest | {"version": version}, manifest)
    (tmp_path / NAME).write_text("{")
    with pytest.raises(UmbelError, match="is not JSON"):
        read_manifest(tmp_path)


def test_settings_are_compared_without_a_look_at_the_files(tokenizer: TextTokenizer) -> None:
    data = replace(DATA, mode="streaming")
    old = defined(data, opened(2), tokenizer)
    check_same_settings(old, data, tokenizer)
    check_same_settings(old, replace(data, workers=7, cache_gb=1.0), None)
    other = train_tokenizer(["other words"], 301)
    with pytest.raises(UmbelError, match="not the one the data was made with"):
        check_same_settings(old, data, other)
    with pytest.raises(UmbelError, match=r"data\.shuffle_window: was 100000, now is 5"):
        check_same_settings(old, replace(data, shuffle_window=5), tokenizer)
    filtered = {"big": Source(path="/x", filters=Filters(min_chars=3))}
    with pytest.raises(UmbelError, match="big: filters"):
        check_same_settings(old, replace(data, sources=filtered), tokenizer)
    with pytest.raises(UmbelError, match="source more: is new"):
        check_same_settings(old, replace(data, sources=data.sources | {"more": Source(path="/z")}), tokenizer)


def test_sources_are_opened_from_the_manifest_alone(
    tmp_path: Path, jsonl: Any, documents: Any, config: Any
) -> None:
    path = jsonl("in/a.jsonl", documents("doc", 90))
    jsonl("in/b/c.jsonl", documents("more", 50))
    data = config(path=str(path.parent), mode="streaming")
    manifest = prepare(data).manifest
    path.rename(tmp_path / "elsewhere.jsonl")
    source = open_from_manifest(data, json.loads(json.dumps(manifest)))["data"]
    assert [file.name for file in source.files] == ["a.jsonl", "b/c.jsonl"]
    assert [file.location for file in source.files] == [str(path), str(path.parent / "b/c.jsonl")]
    assert (source.rows, source.reading) == (140, Reading("text"))
    assert [file.entry for file in source.files] == manifest["sources"]["data"]["files"]


def test_a_hundred_thousand_files_are_read_in_seconds(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    manifest = defined(DATA, opened(100_000, 9), tokenizer)
    write_manifest(tmp_path / NAME, manifest)
    begin = time.monotonic()
    read = read_manifest(tmp_path)
    source = open_from_manifest(DATA, read)["big"]
    check_unchanged(read, manifest)
    assert source.rows == 900_000_000
    assert time.monotonic() - begin < 20  # about 2 s where nothing else runs


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("files", 0, "name"), "../../etc/passwd", "lies outside of its source"),
        (("files", 0, "name"), "/etc/passwd", "lies outside of its source"),
        (("files", 0, "rows"), -1, "-1 rows"),
        (("files", 0, "rows"), "many", "many rows"),
        (("files", 0, "blocks"), [[0, 0], [0, 9]], "a block at row 0"),
        (("files", 0, "blocks"), [[0, -4]], "a block at row 0"),
        (("files",), None, "is no manifest"),
        (("revision",), "main/../../other", "revision"),
        (("train",), {"shards": [{"name": "../../x.parquet", "rows": 3}]}, "shard"),
    ],
)
def test_a_manifest_that_leads_elsewhere_is_refused(
    tmp_path: Path, tokenizer: TextTokenizer, place: tuple[Any, ...], value: Any, said: str
) -> None:
    manifest = json.loads(json.dumps(defined(DATA, opened(2), tokenizer)))
    write_manifest(tmp_path / NAME, manifest)
    read_manifest(tmp_path)
    inner = manifest["sources"]["big"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    write_manifest(tmp_path / NAME, manifest)
    with pytest.raises(UmbelError, match=said):
        read_manifest(tmp_path)
    with pytest.raises(UmbelError, match=said):
        check_unchanged(manifest, manifest)
