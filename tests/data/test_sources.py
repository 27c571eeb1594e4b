from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import UmbelError
from configs.compose import compose
from configs.schema import Data, Source
from data.sources import find_files, open_sources, weights_of


def read(path: Path | str, **settings: Any) -> list[str]:
    said: list[str] = []
    sources = open_sources(Data(path=str(path), **settings), said.append)
    return [document.text for document in sources["data"].documents()]


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
    names = ["b.jsonl", "x/a.jsonl"]
    assert [file.name for file in find_files(str(tmp_path / "in"), "data.path")] == names
    assert [file.name for file in find_files(f"{tmp_path}/in/**/*.jsonl", "data.path")] == names


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
    sources = open_sources(compose(["data=local", override]).data)
    assert [document.text for document in sources["mine"].documents()] == ["x"]
    assert "set data.format=text" in refused(path, format="messages")


def test_parquet_without_the_column_lists_those_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), tmp_path / "a.parquet")
    message = refused(tmp_path / "a.parquet")
    assert "has no column 'text', only: content, id" in message
    data = Data(sources={"a": Source(path=str(tmp_path / "a.parquet"), field="content")})
    assert [document.text for document in open_sources(data)["a"].documents()] == ["a"]
    (tmp_path / "b.parquet").write_text("no parquet")
    assert "is no Parquet file" in refused(tmp_path / "b.parquet")


def test_the_format_is_found_and_said(tmp_path: Path, jsonl: Any) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    said: list[str] = []
    source = open_sources(Data(path=str(jsonl("a.jsonl", [{"messages": chat}]))), said.append)["data"]
    assert (source.format, said) == ("messages", ["source data: chats (column messages)"])
    assert next(source.documents()).messages == chat
    pq.write_table(
        pa.Table.from_pylist([{"messages": [{**chat[0], "name": "x"}, chat[1]]}]), tmp_path / "b.parquet"
    )
    messages = next(open_sources(Data(path=str(tmp_path / "b.parquet")))["data"].documents()).messages
    assert messages == [{**chat[0], "name": "x"}, chat[1]]
    (tmp_path / "c.txt").write_text("plain")
    assert "holds no chats" in refused(tmp_path / "c.txt", format="messages")


def test_max_bytes_is_a_bound(jsonl: Any) -> None:
    path = jsonl("a.jsonl", [{"text": "ä" * 10}] * 5)
    assert read(path, max_bytes=51) == ["ä" * 10, "ä" * 10, "ä" * 5]


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden"])
def test_a_source_cannot_be_named_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UmbelError, match="cannot name a source"):
        open_sources(Data(sources={name: Source(path=str(tmp_path))}))


def test_weights() -> None:
    data = Data(sources={"a": Source(path="x", weight=2.0), "b": Source(path="y", weight=0.0)})
    assert weights_of(data) == {"a": 2.0}
    assert weights_of(Data(path="x")) == {"data": 1.0}
