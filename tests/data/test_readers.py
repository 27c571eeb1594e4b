from __future__ import annotations

import bz2
import errno
import gzip
import io
import itertools
import json
import os
import secrets
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import RunFailed, UmbelError
from configs.schema import Filters
from data.document import Document
from data.files import Kind, Reading, SourceFile
from data.places.retry import BadFile, ChangedFile
from data.readers import ENDINGS, columns, count, count_parquet, kind_of, place_of, read, streams

TEXTS = ["one", "zwei ü", "", "three\n\nparagraphs", "\u2028 separated", "tail \U0001f600"]


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def arrow_file(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, 2)


def arrow_stream(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, 2)


def parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, row_group_size=2, write_page_checksum=True)


def packed(pack: Callable[[bytes], bytes]) -> Callable[[Path, pa.Table], None]:
    return lambda path, table: path.write_bytes(pack(lines(table.to_pylist()))) and None


WRITERS: dict[str, Callable[[Path, pa.Table], None]] = {
    "a.jsonl": packed(bytes),
    "a.jsonl.gz": packed(lambda content: gzip.compress(content[:40]) + gzip.compress(content[40:])),
    "a.jsonl.zst": packed(lambda content: zstd(content[:40]) + zstd(content[40:])),
    "a.ndjson.bz2": packed(bz2.compress),
    "a.parquet": parquet,
    "file.arrow": arrow_file,
    "stream.arrow": arrow_stream,
}


def source_file(path: Path) -> SourceFile:
    kind = kind_of(path)
    assert kind is not None
    rows, blocks = count(path, kind)
    return SourceFile(path.name, str(path), kind, path.stat().st_size, "sha256:0", rows, blocks)


def documents(path: Path, filters: Filters | None = None, first: int = 0, **reading: Any) -> list[Document]:
    chosen = Reading(**{"format": "text"} | reading)
    return list(read(path, source_file(path), chosen, filters or Filters(), first))


def texts(path: Path, filters: Filters | None = None, **reading: Any) -> list[str]:
    return [document.text for document in documents(path, filters, **reading)]


def refused(path: Path, filters: Filters | None = None, **reading: Any) -> str:
    with pytest.raises(UmbelError) as caught:
        documents(path, filters, **reading)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What every kind has in common ------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, pa.table({"n": range(6), "text": TEXTS}))
    found = documents(tmp_path / name, first=100)
    assert [(document.number, document.text) for document in found] == [
        (100 + row, text) for row, text in enumerate(TEXTS) if text
    ]
    assert columns(tmp_path / name, source_file(tmp_path / name).kind) == ["n", "text"]
    assert source_file(tmp_path / name).rows == 6


@pytest.mark.parametrize("name", WRITERS)
def test_parts_make_the_whole(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.readers.jsonl.BLOCK_LINES", 3)
    monkeypatch.setattr("data.readers.jsonl.CHUNK", 7)
    monkeypatch.setattr("data.readers.tables.SLICE", 3)
    path = tmp_path / name
    content = [text or None for text in TEXTS] * 3
    WRITERS[name](path, pa.table({"text": content, "n": range(18)}))
    file = source_file(path)
    whole = list(read(path, file, Reading("text"), Filters(), 5))
    assert len(whole) == 15
    assert len(file.blocks) == {"a.jsonl": 6}.get(name, 1 if ".jsonl" in name or ".nd" in name else 9)

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 18)))
    def cuts(places: list[int]) -> None:
        edges = [0, *sorted(places), 18]
        parts = [
            read(path, file, Reading("text"), Filters(), 5, start, stop)
            for start, stop in itertools.pairwise(edges)
        ]
        assert list(itertools.chain.from_iterable(parts)) == whole

    cuts()


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_grew_or_shrank_since_it_was_counted_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, pa.table({"text": ["a"] * 5}))
    file = source_file(path)
    for rows in (3, 4, 6, 9):
        WRITERS[name](path, pa.table({"text": ["a"] * rows}))
        with pytest.raises(ChangedFile, match="has changed") as caught:
            list(read(path, file, Reading("text"), Filters(), 0))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "a.jsonl"])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, pa.table({"text": [str(number) * 50 for number in range(50)]}))
    file, content = source_file(path), path.read_bytes()
    for kept in (len(content) - 1, len(content) // 2, 3):
        path.write_bytes(content[:kept])
        for attempt in (
            lambda: list(read(path, file, Reading("text"), Filters(), 0)),
            lambda: count(path, file.kind),
        ):
            with pytest.raises(BadFile) as caught:
                attempt()
            assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.ndjson.bz2", "a.parquet"])
def test_a_flipped_bit_is_never_other_data(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, pa.table({"text": [f"{number} words" * 3 for number in range(6)]}))
    file, content = source_file(path), path.read_bytes()
    good = list(read(path, file, Reading("text"), Filters(), 0))
    refusals = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert list(read(path, file, Reading("text"), Filters(), 0)) == good, place
        except UmbelError as error:
            assert str(path) in str(error)
            refusals += 1
    assert refusals > len(content) / 3


def test_a_remote_parquet_is_counted_by_its_footer(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", pa.table({"text": [secrets.token_hex(90_000) for _ in range(5)]}))
    taken = []

    class Remote(io.BytesIO):
        """A file object that counts what is read of it."""

        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            taken.append(len(content))
            return content

    content = (tmp_path / "a.parquet").read_bytes()
    assert count_parquet(Remote(content), "s3://bucket/a.parquet") == (5, ((0, 0), (2, 1), (4, 2)))
    assert 0 < sum(taken) < len(content) / 2
    (tmp_path / "b.parquet").write_text("none")
    with open(tmp_path / "b.parquet", "rb") as file, pytest.raises(BadFile) as caught:
        count_parquet(file, "s3://bucket/b.parquet")
    assert str(caught.value).startswith("s3://bucket/b.parquet: is no Parquet file")


# Counting ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    content=st.binary(max_size=60).map(lambda raw: raw.translate(bytes([10, 65] * 128))),
    chunk=st.integers(1, 9),
)
def test_lines_are_counted_as_they_are_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.readers.jsonl.BLOCK_LINES", 3)
        patch.setattr("data.readers.jsonl.CHUNK", chunk)
        rows, blocks = count(path, "jsonl")
    with open(path, "rb") as file:
        found = file.readlines()
    assert rows == len(found)
    assert blocks == tuple((first, len(b"".join(found[:first]))) for first in range(0, len(found), 3))


def test_blank_lines_are_rows_without_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"text": "a"}\n \r\n{"text": "b"}\r\n{"text": null}\n{"text": " "}\n\n{"text": "c"}')
    assert source_file(path).rows == 8
    assert [(found.number, found.text, found.where) for found in documents(path)] == [
        (1, "a", f"{path}:2"),
        (3, "b", f"{path}:4"),
        (7, "c", f"{path}:8"),
    ]


def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    empty = pa.table({"text": pa.array([], pa.string())})
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        WRITERS[name](tmp_path / name, empty)
    for path in tmp_path.iterdir():
        assert count(path, source_file(path).kind) == (0, ())
        assert documents(path) == []


def test_empty_row_groups_are_no_blocks(tmp_path: Path) -> None:
    full, empty = pa.table({"text": ["a", "b"]}), pa.table({"text": pa.array([], pa.string())})
    with pq.ParquetWriter(tmp_path / "a.parquet", full.schema) as parquets:
        for table in (empty, full, empty, full):
            parquets.write_table(table)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), full.schema) as writer:
        for table in (empty, full, empty, full):
            for batch in table.to_batches() or [pa.record_batch({"text": pa.array([], pa.string())})]:
                writer.write_batch(batch)
    for path in tmp_path.iterdir():
        assert source_file(path).blocks == ((0, 1), (2, 3))
        assert texts(path) == ["a", "b", "a", "b"]
        assert [found.text for found in read(path, source_file(path), Reading("text"), Filters(), 0, 3)] == [
            "b"
        ]


# What is wrong with a line or a file ------------------------------------------------------------------


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
    path = jsonl("deep.jsonl", ["[" * 100_000])
    assert refused(path).startswith(f"{path}:1: is not JSON")
    (tmp_path / "e.jsonl").write_bytes(b'{"text": "\xff"}\n')
    assert refused(tmp_path / "e.jsonl").startswith(f"{tmp_path}/e.jsonl:1: is not UTF-8")
    (tmp_path / "f.txt").write_bytes(b"one\ncaf\xe9")
    assert refused(tmp_path / "f.txt").startswith(f"{tmp_path}/f.txt:2: is not UTF-8")


def test_a_line_far_down_keeps_its_number(tmp_path: Path, jsonl: Any) -> None:
    path = jsonl("a.jsonl", [{"text": "x"}] * 2500 + ["{"])
    file = source_file(path)
    with pytest.raises(UmbelError, match=r"a\.jsonl:2501: is not JSON"):
        list(read(path, file, Reading("text"), Filters(), 0, 2400))
    assert len(list(read(path, file, Reading("text"), Filters(), 0, 2400, 2500))) == 100


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_other_encodings_are_named(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_text(json.dumps({"text": "plain"}) + "\n", encoding=encoding)
    assert refused(tmp_path / name).startswith(f"{tmp_path / name}:1: is not UTF-8 text; convert it: iconv")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", '{"text": "one"}'), ("a.txt", "one")):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert texts(tmp_path / name) == ["one"]


def test_what_is_not_of_its_kind_is_named(tmp_path: Path) -> None:
    for name, said in (
        ("a.parquet", "is no Parquet file"),
        ("a.arrow", "is no Arrow file"),
        ("a.jsonl.gz", "cannot be read"),
    ):
        path = tmp_path / name
        path.write_text("something else entirely")
        for call in (count, columns):
            with pytest.raises(BadFile, match=said) as caught:
                call(path, source_kind(path))
            assert str(path) in str(caught.value)
        with pytest.raises(BadFile, match="No such file"):
            count(tmp_path / "none" / name, source_kind(path))


def source_kind(path: Path) -> Kind:
    kind = kind_of(path)
    assert kind is not None
    return kind


def test_wrong_utf8_in_a_table_is_named(tmp_path: Path) -> None:
    wrong = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    for name in ("a.parquet", "file.arrow"):
        WRITERS[name](tmp_path / name, pa.table({"text": wrong}))
        assert "UTF" in refused(tmp_path / name)
        assert refused(tmp_path / name).startswith(str(tmp_path / name))


def test_arrow_offsets_that_point_outside_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    arrow_file(path, pa.table({"text": ["abc", "de"]}))
    file, content = source_file(path), path.read_bytes()
    offsets = [struct.pack("<3i", 0, middle, 5) for middle in (3, 1 << 30)]
    assert content.count(offsets[0]) == 1
    path.write_bytes(content.replace(*offsets))
    with pytest.raises(BadFile, match=r"a\.arrow"):
        list(read(path, file, Reading("text"), Filters(), 0))


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow", "a.jsonl"])
def test_a_missing_column_lists_those_there_are(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, pa.table({"content": ["a"], "id": [1]}))
    said = refused(tmp_path / name)
    assert "has no column 'text', only: content, id; name one of them as the source's field" in said
    assert "set data.format=text" in refused(tmp_path / name, format="messages")
    assert "no column 'x', only: content, id; mend the source's template" in refused(
        tmp_path / name, template="{content} {x}"
    )
    said = refused(tmp_path / name, Filters(columns={"lang": ["de"]}), field="content")
    assert "no column 'lang', only: content, id; mend the source's filters.columns" in said
    assert texts(tmp_path / name, field="content") == ["a"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    for name in ("a.parquet", "a.arrow"):
        WRITERS.get(name, arrow_file)(tmp_path / name, table)
        assert "has two columns 'text'" in refused(tmp_path / name)


# What becomes of a row --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_chats(tmp_path: Path, name: str) -> None:
    chat = [{"role": "user", "content": "hi", "name": "x"}, {"role": "assistant", "content": "hö"}]
    table = pa.table({"messages": [chat, chat[:1], None]})
    WRITERS[name](tmp_path / name, table)
    found = documents(tmp_path / name, format="messages")
    assert [document.messages for document in found] == [chat, chat[:1]]
    assert found[0].text == json.dumps(chat, sort_keys=True, ensure_ascii=False)
    WRITERS[name](tmp_path / name, pa.table({"messages": ["hi"]}))
    assert "'messages' must be a list of messages, not text" in refused(tmp_path / name, format="messages")


def test_chats_that_are_no_json_are_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", pa.table({"messages": [[b"bytes"]]}))
    assert "'messages' is no list of messages" in refused(tmp_path / "a.parquet", format="messages")


@pytest.mark.parametrize("name", WRITERS)
def test_templates_and_filters(tmp_path: Path, name: str) -> None:
    rows = {"title": ["A", None, "Cc", "Dd"], "n": [1, 2, 3, 4], "lang": ["de", "de", "en", "de"]}
    WRITERS[name](tmp_path / name, pa.table(rows))
    path, template = tmp_path / name, "{title}: {n}"
    assert texts(path, template=template) == ["A: 1", ": 2", "Cc: 3", "Dd: 4"]
    kept = Filters(min_chars=4, columns={"lang": ["de", "fr"]}, excludes="4")
    found = documents(path, kept, 10, template=template, columns=("lang",))
    assert [(document.number, document.text) for document in found] == [(10, "A: 1")]
    assert texts(path, Filters(matches="^.c"), field="title") == ["Cc"]


def test_plain_text_has_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "blank.txt").write_text(" \n")
    assert texts(tmp_path / "a.txt.gz", field="whatever") == ["one\ntwo\n"]
    assert texts(tmp_path / "a.txt.gz", template="<{text}>") == ["<one\ntwo\n>"]
    assert texts(tmp_path / "blank.txt") == []
    assert documents(tmp_path / "a.txt.gz", first=7)[0].number == 7
    assert "no column 'lang', only: text" in refused(tmp_path / "a.txt.gz", Filters(columns={"lang": ["de"]}))
    assert columns(tmp_path / "a.txt.gz", "text") == []


def test_python_files_hold_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text('"""What it is."""\nx = 1\n')
    file = SourceFile("stdlib/x.py", str(path), "python", 1, "sha256:0", 1)
    for part, wanted in (("code", path.read_text()), ("prose", "x\n\nWhat it is.\n")):
        (document,) = read(path, file, Reading("text", part=part), Filters(), 4)
        assert (document.text, document.where, document.number) == (wanted, "stdlib/x.py", 4)
    path.write_text("def broken(:")
    assert list(read(path, file, Reading("text", part="prose"), Filters(), 0)) == []


def test_errors_name_where_the_file_lies_not_its_copy(tmp_path: Path, jsonl: Any) -> None:
    path = jsonl("a.jsonl", ["{"])
    file = replace(source_file(path), location="s3://bucket/a.jsonl")
    for where, said in ((None, "s3://bucket/a.jsonl:1: "), ("mine", "mine:1: ")):
        with pytest.raises(UmbelError) as caught:
            list(read(path, file, Reading("text"), Filters(), 0, where=where))
        assert str(caught.value).startswith(said)
    assert place_of(file) == "s3://bucket/a.jsonl"


def test_the_packing_is_told_by_the_name_not_the_copy(tmp_path: Path, jsonl: Any) -> None:
    path = jsonl("a.jsonl", [{"text": "x"}])
    (tmp_path / "copy").write_bytes(gzip.compress(path.read_bytes()))
    file = replace(source_file(path), name="a.jsonl.gz")
    assert [found.text for found in read(tmp_path / "copy", file, Reading("text"), Filters(), 0)] == ["x"]


def test_endings() -> None:
    assert set(ENDINGS.values()) == set(get_args(Kind)) - {"python"}
    assert [kind_of(name) for name in ("A.JSONL", "b.txt.ZST", "c/d.arrow")] == ["jsonl", "text", "arrow"]
    assert [kind_of(name) for name in ("a.xlsx", "a", "a.parquet.gz", ".jsonl", "a.gz")] == [None] * 5


def test_a_machine_without_file_handles_is_no_bad_input(jsonl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bad input made is deleted; after this, what is finished is kept."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    path = jsonl("a.jsonl", [{"text": "x"}])
    monkeypatch.setattr(streams, "open", full, raising=False)
    with pytest.raises(RunFailed, match=r"a\.jsonl: cannot be read \(Too many open files\)"):
        count(path, "jsonl")
