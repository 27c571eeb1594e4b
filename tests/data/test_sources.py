from __future__ import annotations

import gzip
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import UmbelError
from configs.compose import compose
from configs.schema import Data, Filters, Source
from data.document import Document
from data.files import FoundFile, OpenSource
from data.places.finding import find, limit_files
from data.places.remote import fetch
from data.readers import read as read_file
from data.sources import locate, open_sources, weights_of
from support.servers import Response, Server, files

CACHE = Path(os.environ["UMBEL_CACHE"])


def documents(source: OpenSource) -> Iterator[Document]:
    for index, file in enumerate(source.files):
        path = fetch(file, CACHE / "fetched")
        yield from read_file(path, file, source.reading, Filters(), source.first_number(index))


def read(path: Path | str, **settings: Any) -> list[str]:
    source = open_sources(Data(path=str(path), **settings), CACHE)["data"]
    return [document.text for document in documents(source)]


def refused(path: Path | str, **settings: Any) -> str:
    with pytest.raises(UmbelError) as caught:
        read(path, **settings)
    return str(caught.value)


def test_every_file_type_gives_the_same_texts(tmp_path: Path, jsonl: Any) -> None:
    wanted = ["one", "zwei ü", "three\n\nparagraphs"]
    plain = jsonl("a.jsonl", [{"text": text, "n": 1} for text in wanted])
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()[:15]) + gzip.compress(plain.read_bytes()[15:]))
    zst = tmp_path / "c.jsonl.zst"
    with pa.OSFile(str(zst), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
        stream.write(plain.read_bytes())
    pq.write_table(pa.table({"text": wanted}), tmp_path / "d.parquet", row_group_size=2)
    for file in (plain, packed, zst, tmp_path / "d.parquet"):
        assert read(file) == wanted
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(wanted):
        (folder / f"{number}.txt").write_text(text)
    assert read(folder) == wanted
    assert read(f"{folder}/[12].txt") == wanted[1:]


def test_files_are_named_relative_to_what_was_asked_for(tmp_path: Path, jsonl: Any) -> None:
    jsonl("in/x/a.jsonl", [{"text": "a"}])
    jsonl("in/b.jsonl", [{"text": "b"}])
    jsonl("in/.hidden/c.jsonl", [{"text": "c"}])
    (tmp_path / "in" / "notes.pdf").write_text("left out")
    for path in (tmp_path / "in", f"{tmp_path}/in/**/*.jsonl"):
        source = Source(path=str(path))
        found, revision = find(source, "data")
        assert ([file.name for file in found], revision) == (["b.jsonl", "x/a.jsonl"], None)
        assert [locate(source, file.name, None) for file in found] == [file.location for file in found]
    one = Source(path=str(tmp_path / "in" / "b.jsonl"))
    assert locate(one, "b.jsonl", None) == one.path


def test_a_source_of_python_is_found_again_by_name() -> None:
    for part in ("code", "prose"):
        source = Source(kind="python", part=part)
        found, _ = find(source, "data")
        assert {locate(source, file.name, None) == file.location for file in found} == {True}


def test_what_is_missing_is_named(tmp_path: Path, jsonl: Any) -> None:
    assert "data.path=" in refused(tmp_path / "none.jsonl")
    assert "no such file" in refused(tmp_path / "none.jsonl")
    assert "no files" in refused(f"{tmp_path}/*.jsonl")
    (tmp_path / "empty").mkdir()
    assert "no files" in refused(tmp_path / "empty")
    (tmp_path / "table.xlsx").write_text("")
    assert "unknown file type" in refused(tmp_path / "table.xlsx")


def test_broken_lines_are_named_by_file_and_line(tmp_path: Path, jsonl: Any) -> None:
    good = {"text": "fine"}
    path = jsonl("a.jsonl", [good, "", '{"text": "half'])
    assert refused(path).startswith(f"{path}:3: is not JSON")
    path = jsonl("b.jsonl", [good, '["list"]'])
    assert refused(path).startswith(f"{path}:2: must be an object")
    path = jsonl("c.jsonl", [good, {"text": 5}])
    assert refused(path).startswith(f"{path}:2: 'text' must be text, not a number")
    path = jsonl("s.jsonl", [good, '{"text": "half \\ud83d"}'])
    assert refused(path).startswith(f"{path}:2: is not valid Unicode")
    path = jsonl("d.jsonl", [good, {"body": "x", "id": 1}])
    assert refused(path).startswith(f"{path}:2: has no column 'text', only: body, id")
    (tmp_path / "e.jsonl").write_bytes(b'{"text": "\xff"}\n')
    assert refused(tmp_path / "e.jsonl", format="text").startswith(f"{tmp_path}/e.jsonl:1: is not UTF-8")
    (tmp_path / "f.txt").write_bytes(b"one\ncaf\xe9")
    assert refused(tmp_path / "f.txt").startswith(f"{tmp_path}/f.txt:2: is not UTF-8")
    cut = gzip.compress(json.dumps(good).encode() * 999)[:-20]
    (tmp_path / "g.jsonl.gz").write_bytes(cut)
    assert "g.jsonl.gz" in refused(tmp_path / "g.jsonl.gz")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_other_encodings_are_named(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_text(json.dumps({"text": "plain"}) + "\n", encoding=encoding)
    assert refused(tmp_path / name).startswith(f"{tmp_path / name}:1: is not UTF-8 text; convert it: iconv")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", '{"text": "one"}'), ("a.txt", "one")):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert read(tmp_path / name) == ["one"]


def test_the_hint_at_another_column_can_be_followed(jsonl: Any) -> None:
    path = jsonl("a.jsonl", [{"body": "x"}])
    said = refused(path)
    assert "in place of data.path: data=local 'data.sources.mine={path: …, field: …}'" in said
    override = said.split("'")[-2].replace("path: …", f"path: '{path}'").replace("field: …", "field: body")
    sources = open_sources(compose(["data=local", override]).data, CACHE)
    assert [document.text for document in documents(sources["mine"])] == ["x"]
    assert "set data.format=text" in refused(path, format="messages")


def test_parquet_without_the_column_lists_those_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), tmp_path / "a.parquet")
    message = refused(tmp_path / "a.parquet")
    assert "has no column 'text', only: content, id" in message
    data = Data(sources={"a": Source(path=str(tmp_path / "a.parquet"), field="content")})
    assert [document.text for document in documents(open_sources(data, CACHE)["a"])] == ["a"]
    (tmp_path / "b.parquet").write_text("no parquet")
    assert "is no Parquet file" in refused(tmp_path / "b.parquet")


def test_the_format_is_found_and_said(tmp_path: Path, jsonl: Any) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    said: list[str] = []
    source = open_sources(Data(path=str(jsonl("a.jsonl", [{"messages": chat}]))), CACHE, said.append)["data"]
    assert (source.reading.format, said) == ("messages", ["source data: chats (column messages)"])
    assert next(documents(source)).messages == chat
    pq.write_table(
        pa.Table.from_pylist([{"messages": [{**chat[0], "name": "x"}, chat[1]]}]), tmp_path / "b.parquet"
    )
    source = open_sources(Data(path=str(tmp_path / "b.parquet")), CACHE)["data"]
    messages = next(documents(source)).messages
    assert messages == [{**chat[0], "name": "x"}, chat[1]]
    (tmp_path / "c.txt").write_text("plain")
    assert "holds no chats" in refused(tmp_path / "c.txt", format="messages")


def test_max_bytes_keeps_whole_files_in_streaming_mode(tmp_path: Path, jsonl: Any) -> None:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("x" * 10)
    assert read(tmp_path, mode="streaming", max_bytes=39) == ["x" * 10] * 3
    assert len(read(tmp_path, mode="prepared", max_bytes=39)) == 4
    assert "less than the first file's 10; raise it" in refused(tmp_path, mode="streaming", max_bytes=9)
    path = jsonl("a.jsonl", [{"text": "x"}])
    message = "data.max_bytes cannot cut jsonl files in streaming mode; set data.mode=prepared, or drop"
    assert message in refused(path, mode="streaming", max_bytes=9)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.md.zst"])
def test_max_bytes_knows_no_packed_text(name: str) -> None:
    with pytest.raises(UmbelError, match="cannot cut packed"):
        limit_files([FoundFile(name, name, "text", 5)], 10, "data.path")


WEB = {
    "/data/a.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "/data/b.jsonl.gz": gzip.compress(b'{"text": "three"}\n'),
}


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("trust", [True, False])
def test_a_web_server_s_file(tmp_path: Path, etags: bool, trust: bool) -> None:
    with Server(files(WEB, etags=etags)) as server:
        for path, wanted in (("a.jsonl", ["one", "two"]), ("b.jsonl.gz", ["three"])):
            described = Source(path=f"{server.url}/data/{path}?download=1", trust_etag=trust)
            source = open_sources(Data(sources={"a": described}), tmp_path)["a"]
            assert source.files[0].pin.startswith("etag:" if etags and trust else "sha256:")
            assert source.files[0].name == path
            assert locate(described, path, None) == source.files[0].location
            assert [document.text for document in documents(source)] == wanted
        server.requests.clear()
        assert open_sources(Data(sources={"a": described}, format="text"), tmp_path)["a"] == source
        assert server.count("GET") == (0 if etags else 1)  # without an ETag nothing says that it is the same


def test_a_web_server_without_ranges_or_lengths(tmp_path: Path) -> None:
    content = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), content)
    with Server(files({"/a.parquet": content.getvalue()}, etags=True, ranges=False)) as server:
        data = Data(sources={"a": Source(path=f"{server.url}/a.parquet", trust_etag=True)})
        assert open_sources(data, tmp_path)["a"].files[0].rows == 2
        assert "cannot list files" in refused(f"{server.url}/*.parquet")
    with Server(lambda _: Response(200, b"", {"Content-Length": ""})) as server:
        assert "does not say how long" in refused(f"{server.url}/a.txt")


def test_files_in_memory() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus/b.txt": b"two", "/corpus/a.txt": b"one"})
    assert read("memory://corpus") == ["one", "two"]
    assert read("memory://corpus/b*.txt") == ["two"]
    assert "no files there" in refused("memory://corpus/*.jsonl")


@pytest.mark.parametrize(
    "url",
    [
        "https://me:password@host/a.jsonl",
        "https://host/a.jsonl?token=abc",
        "https://host/a.jsonl?X-Amz-Signature=abc&X-Amz-Date=1",
        "s3://AKIAABCDEFGHIJKLMNOP/x",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    message = refused(url)
    assert "the URL carries a secret" in message
    for secret in ("password", "abc", "AKIA"):
        assert secret not in message


def test_a_protocol_without_its_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert refused("gs://bucket/a.jsonl").endswith(
        "gs:// needs a package that is not installed; pip install gcsfs"
    )
    assert "use s3, gs, hf or https" in refused("nonsense://x/a.jsonl")


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden"])
def test_a_source_cannot_be_named_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UmbelError, match="cannot name a source"):
        open_sources(Data(sources={name: Source(path=str(tmp_path))}), CACHE)


def test_weights() -> None:
    data = Data(sources={"a": Source(path="x", weight=2.0), "b": Source(path="y", weight=0.0)})
    assert weights_of(data) == {"a": 2.0}
    assert weights_of(Data(path="x")) == {"data": 1.0}


def test_a_chain_of_protocols_is_refused() -> None:
    with pytest.raises(UmbelError, match="chained URLs"):
        find(Source(path="simplecache::https://host/a.jsonl"), "data.sources.x")
