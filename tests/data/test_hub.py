"""Datasets of a hub, through the official client against a stand-in. The client reads HF_ENDPOINT when it is
imported, so each test asks in a process of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import UmbelError
from configs.schema import Data, Filters, Source
from support.processes import run_workers
from support.servers import Hub, Server

OLD, NEW = "1" * 40, "2" * 40
CARD = b"""---
configs:
- config_name: english
  data_files:
  - split: train
    path: en/train-*.parquet
  - split: test
    path: en/test.parquet
- config_name: german
  data_files: de/*.jsonl
---
# A dataset
"""


def parquet(*texts: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": list(texts)}), sink)
    return sink.getvalue()


def jsonl(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


FILES = {
    "README.md": CARD,
    "en/train-00001-of-2.parquet": parquet("two", "three"),
    "en/train-00000-of-2.parquet": parquet("one"),
    "en/test.parquet": parquet("held"),
    "de/a.jsonl": jsonl("eins", "zwei"),
}


@pytest.fixture
def hub() -> Iterator[Server]:
    newer = FILES | {"en/train-00000-of-2.parquet": parquet("ONE")}
    commits = {OLD: FILES, NEW: newer}
    with Server(Hub("org/name", commits, {"main": NEW, "v1": OLD})) as server:
        yield server


def opened(source: dict[str, Any], cache: str) -> dict[str, Any]:
    from data.places import retry
    from data.places.remote import fetch
    from data.readers import read
    from data.sources import locate, open_sources

    retry.ATTEMPTS, retry.FIRST_WAIT, retry.LONGEST_WAIT = 4, 0.01, 0.02
    described = Source(**source)
    folder = Path(cache)
    try:
        found = open_sources(Data(sources={"a": described}), folder)["a"]
        texts = [
            document.text
            for file in found.files
            for document in read(fetch(file, folder / "fetched"), file, found.reading, Filters(), 0)
        ]
    except UmbelError as error:
        return {"error": str(error)}
    return {
        "texts": texts,
        "names": [file.name for file in found.files],
        "pins": [file.pin.split(":")[0] for file in found.files],
        "revision": found.revision,
        "located": [locate(described, file.name, found.revision) == file.location for file in found.files],
    }


def ask(hub: Server, cache: Path, **source: Any) -> dict[str, Any]:
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache / "hf")}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    (result,) = run_workers(1, opened, source, str(cache / "umbel"), gloo=False, env=env)
    return result


def test_a_configuration_and_split_at_a_commit(hub: Server, tmp_path: Path) -> None:
    got = ask(hub, tmp_path, kind="hub", path="org/name", config="english", revision="v1")
    assert got["texts"] == ["one", "two", "three"]
    assert got["names"] == ["en/train-00000-of-2.parquet", "en/train-00001-of-2.parquet"]
    assert got["pins"] == ["sha256", "sha256"]
    assert got["revision"] == OLD
    assert got["located"] == [True, True]
    newer = ask(hub, tmp_path, kind="hub", path="org/name", config="english")
    assert (newer["texts"], newer["revision"]) == (["ONE", "two", "three"], NEW)


@pytest.mark.slow
def test_small_files_are_pinned_as_git_blobs(hub: Server, tmp_path: Path) -> None:
    hub.fail("503", "GET /api/", 1)
    hub.fail("truncate", "GET .*a.jsonl", 1)
    hub.fail("flip", "GET .*a.jsonl", 1)
    got = ask(hub, tmp_path, kind="hub", path="org/name", config="german")
    assert (got["texts"], got["pins"]) == (["eins", "zwei"], ["git"])
    test = ask(hub, tmp_path, kind="hub", path="org/name", config="english", split="test")
    assert test["texts"] == ["held"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "org/name"}, "has several configurations; set config to one of: english, german"),
        ({"path": "org/name", "config": "x"}, "has no configuration 'x'; set config to one of: english"),
        (
            {"path": "org/name", "config": "german", "split": "x"},
            "has no split 'x'; set split to one of: train",
        ),
        ({"path": "org/name", "revision": "v9"}, "org/name at revision v9: is not there"),
        ({"path": "org/none"}, "org/none: access is refused (HTTP 401)"),
        ({"path": "a/b/c"}, "'a/b/c' is no dataset of a hub; write org/name"),
    ],
)
def test_what_is_missing_is_told(hub: Server, tmp_path: Path, source: dict[str, Any], message: str) -> None:
    error = ask(hub, tmp_path, kind="hub", **source)["error"]
    assert error.startswith("data.sources.a")
    assert message in error


@pytest.mark.slow
def test_urls_of_a_hub_are_pinned_too(hub: Server, tmp_path: Path) -> None:
    got = ask(hub, tmp_path, path="hf://datasets/org/name/en/train*")
    assert (got["texts"], got["revision"], got["located"]) == (["ONE", "two", "three"], NEW, [True, True])
    assert got["names"] == ["train-00000-of-2.parquet", "train-00001-of-2.parquet"]
    old = ask(hub, tmp_path, path="hf://datasets/org/name@v1/en")
    assert (old["texts"], old["revision"]) == (["held", "one", "two", "three"], OLD)
    assert "write hf://" in ask(hub, tmp_path, path="hf://nothing")["error"]
