from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import UmbelError
from configs.schema import Source
from data.files import FoundFile
from data.places import index as index_module
from data.places.finding import find
from data.places.index import index
from data.places.known import Known, state_of
from data.places.retry import ChangedFile
from support.servers import Server, files


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []
    real = index_module.measure

    def counted(file: FoundFile, *args):
        names.append(file.name)
        return real(file, *args)

    monkeypatch.setattr(index_module, "measure", counted)
    return names


def lines(path: Path, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": str(number)}) + "\n" for number in range(count)))
    return path


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds pass."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10**10)


def run(path: Path, tmp_path: Path, **settings):
    found, _ = find(Source(path=str(path)), "data")
    return index(found, tmp_path / "index.json", tmp_path / "fetched", **settings)


def test_rows_blocks_and_pins(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    lines(folder / "a.jsonl", 2500)
    pq.write_table(pa.table({"text": ["x"] * 25}), folder / "b.parquet", row_group_size=10)
    (folder / "c.txt").write_text("text")
    files = run(folder, tmp_path).files
    assert [(file.name, file.rows) for file in files] == [("a.jsonl", 2500), ("b.parquet", 25), ("c.txt", 1)]
    assert [first for first, _ in files[0].blocks] == [0, 1000, 2000]
    with open(folder / "a.jsonl") as file:
        file.seek(files[0].blocks[1][1])
        assert json.loads(file.readline())["text"] == "1000"
    assert files[1].blocks == ((0, 0), (10, 1), (20, 2))
    assert all(file.pin.startswith("sha256:") for file in files)


def test_a_second_start_reads_nothing_and_gives_the_same(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    for number in range(5):
        lines(folder / f"{number}.jsonl", number)
    later(monkeypatch)
    first = run(folder, tmp_path)
    assert len(measured) == 5
    assert run(folder, tmp_path) == first
    assert len(measured) == 5
    lines(folder / "3.jsonl", 7)
    (folder / "4.jsonl").unlink()
    lines(folder / "5.jsonl", 1)
    again = run(folder, tmp_path)
    assert measured[5:] == ["3.jsonl", "5.jsonl"]
    assert [file.rows for file in again.files] == [0, 1, 2, 7, 1]


def test_a_young_file_is_read_again(tmp_path: Path, measured: list[str]) -> None:
    path = lines(tmp_path / "in" / "a.jsonl", 3)
    assert run(path, tmp_path) == run(path, tmp_path)
    assert measured == ["a.jsonl", "a.jsonl"]


def test_a_date_set_back_does_not_hide_a_change(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path / "in" / "a.jsonl", 3)
    later(monkeypatch)
    before = run(path, tmp_path).files[0]
    state = os.stat(path)
    path.write_text(path.read_text().replace("1", "7"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run(path, tmp_path).files[0].pin != before.pin


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 99, "files": {}}', '{"version": 1}'])
def test_a_damaged_index_is_written_anew(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path / "in" / "a.jsonl", 3)
    later(monkeypatch)
    first = run(path, tmp_path)
    (tmp_path / "index.json").write_text(damage)
    assert run(path, tmp_path) == first
    found, _ = find(Source(path=str(path)), "data")
    assert Known(tmp_path / "index.json").get(found[0]) == first.files[0]


def test_what_cannot_be_read_stops_or_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    lines(folder / "a.jsonl", 3)
    (folder / "b.parquet").write_text("no parquet")
    (folder / "c.txt").write_text("text")
    with pytest.raises(UmbelError, match=r"in/b.parquet: is no Parquet file"):
        run(folder, tmp_path)
    left = run(folder, tmp_path, skip_bad=True)
    assert ([file.name for file in left.files], left.skipped) == (["a.jsonl", "c.txt"], ("b.parquet",))


def test_a_file_that_grows_while_it_is_read_is_never_skipped(tmp_path: Path) -> None:
    path = lines(tmp_path / "in" / "a.jsonl", 3)
    size, stamp = state_of(path)
    found = [FoundFile("a.jsonl", str(path), "jsonl", size - 1, stamp)]
    with pytest.raises(ChangedFile, match="changes while it is read"):
        index(found, tmp_path / "index.json", tmp_path / "fetched", skip_bad=True)


def test_a_read_only_cache_costs_time_only(tmp_path: Path) -> None:
    path = lines(tmp_path / "in" / "a.jsonl", 3)
    (tmp_path / "file").write_text("")
    found, _ = find(Source(path=str(path)), "data")
    assert index(found, tmp_path / "file" / "index.json", tmp_path / "fetched").files[0].rows == 3


@pytest.mark.parametrize(("keep_bytes", "kept"), [(0, 0), (60, 1), (10**6, 3)])
def test_downloads_are_kept_while_there_is_room(tmp_path: Path, keep_bytes: int, kept: int) -> None:
    content = {f"/{name}.jsonl": b'{"text": "about fifty bytes, be it long"}\n' for name in "abc"}
    with Server(files(content)) as server:
        found = [find(Source(path=f"{server.url}{path}"), "data")[0][0] for path in content]
        folder = tmp_path / "fetched"
        indexed = index(found, tmp_path / "index.json", folder, keep_bytes=keep_bytes)
    assert [file.rows for file in indexed.files] == [1, 1, 1]
    assert len(list(folder.iterdir())) == kept


def test_processes_that_start_at_once_read_every_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    lines(tmp_path / "a.jsonl", 10)
    later(monkeypatch)
    slow = index_module.measure
    monkeypatch.setattr(index_module, "measure", lambda *facts: (time.sleep(0.3), slow(*facts))[1])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: run(tmp_path / "a.jsonl", tmp_path), range(4)))
    assert measured == ["a.jsonl"]
    assert all(each == found[0] for each in found)
