from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UmbelError
from configs.schema import Filters
from data.document import Document
from data.files import OpenSource, Reading, SourceFile
from data.places.pins import pin_of
from data.places.retry import BadFile, ChangedFile
from data.readers import count, kind_of, read
from data.streaming import documents
from data.streaming.cache import ABANDONED
from data.streaming.documents import DocumentStore, bundles_of
from data.streaming.text_file import TextFile, write_texts

PLENTY = 1 << 40
KEPT = Filters(min_chars=4, excludes="7")


def source_file(path: Path, root: Path | None = None) -> SourceFile:
    kind = kind_of(path)
    assert kind is not None
    name = path.name if root is None else path.relative_to(root).as_posix()
    return SourceFile(name, str(path), kind, path.stat().st_size, pin_of(path), *count(path, kind))


def source(*paths: Path, skipped: tuple[str, ...] = (), **reading: Any) -> OpenSource:
    chosen = Reading(**{"format": "text"} | reading)
    return OpenSource("s", "data.sources.s", chosen, tuple(source_file(path) for path in paths), skipped)


def some_files(folder: Path) -> list[Path]:
    """Every kind, with blank rows and rows that `KEPT` leaves out."""
    folder.mkdir(exist_ok=True)
    rows = [{"text": f"text {number} ü" if number % 5 else ""} for number in range(23)]
    lines = "".join(json.dumps(row) + "\n\n" for row in rows)
    (folder / "a.jsonl").write_text(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "c.parquet", row_group_size=4)
    with pa.ipc.new_stream(str(folder / "d.arrow"), table.schema) as writer:
        writer.write_table(table, 3)
    (folder / "e.txt").write_text("one whole file")
    (folder / "f.jsonl").write_text("")
    (folder / "g.txt").write_text("no")
    return sorted(folder.iterdir())


def read_all(opened: OpenSource, filters: Filters) -> dict[int, Document]:
    found = {}
    for index, file in enumerate(opened.files):
        first = opened.first_number(index)
        for document in read(Path(file.location), file, opened.reading, filters, first):
            found[document.number] = document
    return found


def counting(log: Path) -> Callable[[SourceFile, Path], Path]:
    """A fetch that copies, as a download does, and writes down what it fetched."""

    def fetch(file: SourceFile, folder: Path) -> Path:
        with open(log, "a") as out:
            out.write(file.name + "\n")
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / file.name
        copy.write_bytes(Path(file.location).read_bytes())
        return copy

    return fetch


def arrow_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


# A text file ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.lists(st.none() | st.text(min_size=1)), st.integers(1, 5), st.integers(1, 20))
def test_texts_come_back_by_number(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], rows: int, characters: int
) -> None:
    path = tmp_path_factory.mktemp("texts") / "a.arrow"
    with pytest.MonkeyPatch.context() as patch, open(path, "wb") as out:
        patch.setattr("data.streaming.text_file.BATCH_ROWS", rows)
        patch.setattr("data.streaming.text_file.BATCH_CHARACTERS", characters)
        write_texts(out, iter(texts))
    file = TextFile(path)
    assert [file.get(row) for row in range(len(file))] == texts
    with pa.memory_map(str(path)) as mapped:
        assert pa.ipc.open_file(mapped).read_all()["text"].to_pylist() == texts


def test_an_open_text_file_holds_no_file_handle_and_outlives_its_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open(tmp_path / "a.arrow", "wb") as out:
        write_texts(out, ["x" * 9999] * 20)
    file = TextFile(tmp_path / "a.arrow")
    (tmp_path / "a.arrow").unlink()
    assert file.get(19) == "x" * 9999
    assert len(os.listdir("/proc/self/fd")) == before


# The store --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [Filters(), KEPT])
@pytest.mark.parametrize("bundle_bytes", [1, 300, 16_000_000])
def test_a_document_is_what_reading_gives(
    tmp_path: Path, filters: Filters, bundle_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BUNDLE_BYTES", bundle_bytes)
    monkeypatch.setattr("data.streaming.text_file.BATCH_ROWS", 4)
    opened = source(*some_files(tmp_path / "in"))
    store = DocumentStore(opened, filters, tmp_path / "cache", PLENTY)
    wanted = read_all(opened, filters)
    assert 20 < len(wanted) < store.rows == opened.rows
    for number in reversed(range(store.rows)):
        assert store.get(number) == wanted.get(number)
    again = DocumentStore(
        opened, filters, tmp_path / "cache", PLENTY, fetch=lambda *_: pytest.fail("fetched")
    )
    assert [again.get(number) for number in range(store.rows)] == list(map(wanted.get, range(store.rows)))
    for number in (-1, store.rows):
        with pytest.raises(IndexError):
            store.get(number)


def test_chats_come_back_as_they_were(tmp_path: Path, jsonl: Any) -> None:
    chats = [[{"role": "user", "content": "ü", "tools": {"z": 1, "a": None}}], None, [{"role": "assistant"}]]
    path = jsonl("a.jsonl", [{"messages": chat} for chat in chats])
    opened = source(path, format="messages")
    store = DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY)
    wanted = read_all(opened, Filters())
    assert [store.get(number) for number in range(3)] == [wanted[0], None, wanted[2]]
    found = store.get(0)
    assert found is not None and found.messages is not None
    assert list(found.messages[0]) == ["role", "content", "tools"]  # a template may show the order
    assert list(found.messages[0]["tools"]) == ["z", "a"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 30)), st.integers(1, 5))
def test_bundles_hold_every_file_once_and_are_as_large_as_may_be(sizes: list[int], most: int) -> None:
    files = [SourceFile(str(size), "", "text", size, "", 1) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BUNDLE_BYTES", 40)
        patch.setattr(documents, "BUNDLE_FILES", most)
        bundles = bundles_of(files)
    assert [index for bundle in bundles for index in bundle] == list(range(len(sizes)))
    totals = [sum(sizes[index] for index in bundle) for bundle in bundles]
    assert all(len(bundle) == 1 or total <= 40 for bundle, total in zip(bundles, totals, strict=True))
    for bundle, total in zip(bundles[:-1], totals, strict=False):
        assert len(bundle) == most or total + sizes[bundle.stop] > 40


def test_many_small_files_are_one(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_text(f"text {number}")
    opened = source(*sorted(tmp_path.glob("*.txt")))
    store = DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY, counting(tmp_path / "log"))
    assert store.get(17).text == "text 17"  # type: ignore[union-attr]
    assert len(arrow_files(tmp_path / "cache")) == 1
    assert not list((tmp_path / "cache").glob("*.downloads"))


def test_what_the_texts_depend_on_names_the_file(tmp_path: Path, jsonl: Any) -> None:
    path, cache = jsonl("a.jsonl", [{"text": "one", "b": "two"}]), tmp_path / "cache"
    for opened, filters in (
        (source(path), Filters()),
        (source(path, field="b"), Filters()),
        (source(path, template="{b}"), Filters()),
        (source(path), Filters(min_chars=9)),
        (source(path, skipped=("a.jsonl",)), Filters()),
    ):
        DocumentStore(opened, filters, cache, PLENTY).get(0)
    other = source(jsonl("a.jsonl", [{"text": "One", "b": "two"}]))
    DocumentStore(other, Filters(), cache, PLENTY).get(0)
    assert len(arrow_files(cache)) == 6


def test_an_etag_means_nothing_without_its_server(tmp_path: Path, jsonl: Any) -> None:
    found = []
    for name in ("x/a.jsonl", "y/a.jsonl"):
        path = jsonl(name, [{"text": name}])
        file = SourceFile("a.jsonl", str(path), "jsonl", path.stat().st_size, "etag:1", 1)
        opened = OpenSource("s", "s", Reading("text"), (file,))
        found.append(DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY).get(0))
    assert [document.text for document in found if document] == ["x/a.jsonl", "y/a.jsonl"]


def test_a_skipped_file_has_no_documents_and_is_not_fetched(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    opened = source(*sorted(tmp_path.glob("*.txt")), skipped=("b.txt",))
    store = DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY, counting(tmp_path / "log"))
    found = [store.get(number) for number in range(3)]
    assert [document and document.text for document in found] == ["a", None, "c"]
    assert "b.txt" not in (tmp_path / "log").read_text()


# What goes wrong --------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_had_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    opened = source(*some_files(tmp_path / "in"))
    begun = []

    def fetch(file: SourceFile, folder: Path) -> Path:
        begun.append(file.name)
        raise BadFile("is not there", where=file.location)

    store = DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY, fetch)
    for _ in range(2):
        with pytest.raises(BadFile, match="is not there"):
            store.get(0)
    assert arrow_files(tmp_path / "cache") == []
    assert DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY).get(2) is not None


def test_a_changed_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    opened = source(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("behind")
    with pytest.raises(ChangedFile, match=r"a\.txt: has changed"):
        DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY).get(0)


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl("a.jsonl", [{"text": "before"}])

    def read_late(*arguments: Any) -> Any:
        jsonl("a.jsonl", [{"text": "behind"}])
        return read(*arguments)

    opened = source(path)
    monkeypatch.setattr(documents, "read", read_late)
    with pytest.raises(ChangedFile, match=r"a\.jsonl: has changed"):
        DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY).get(0)
    assert arrow_files(tmp_path / "cache") == []


def test_a_broken_line_is_named_and_leaves_nothing(tmp_path: Path, jsonl: Any) -> None:
    path = jsonl("a.jsonl", [{"text": "x"}] * 5 + ["{"])
    with pytest.raises(UmbelError, match=r"a\.jsonl:6: is not JSON"):
        DocumentStore(source(path), Filters(), tmp_path / "cache", PLENTY).get(0)
    assert arrow_files(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UmbelError, match="cannot be used") as caught:
        DocumentStore(source(tmp_path / "a.txt"), Filters(), tmp_path / "cache", PLENTY).get(0)
    assert str(tmp_path / "cache") in str(caught.value) and "data.cache_dir" in str(caught.value)


def short(_: bytes) -> bytes:
    """A whole file, of too few rows."""
    out = io.BytesIO()
    write_texts(out, ["x"])
    return out.getvalue()


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-9], lambda content: b"x" * 99, short]
)
def test_a_damaged_cache_file_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    opened = source(*some_files(tmp_path / "in"))
    wanted = DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY).get(2)
    (made,) = arrow_files(tmp_path / "cache")
    made.write_bytes(damage(made.read_bytes()))
    assert DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY).get(2) == wanted


# Many processes ---------------------------------------------------------------------------------------

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from configs.schema import Filters
from data.streaming import documents
from data.files import OpenSource, Reading, SourceFile

folder, mode = Path(sys.argv[1]), sys.argv[2]
files = tuple(SourceFile.of(*entry) for entry in json.loads((folder / "files.json").read_text()))

def fetch(file, downloads):
    with open(folder / "log", "a") as out:
        out.write(file.name + "\\n")
    downloads.mkdir(parents=True, exist_ok=True)
    (downloads / file.name).write_bytes(Path(file.location).read_bytes())
    time.sleep(0.05)
    return downloads / file.name

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if mode == "die":
    os.fsync = die
    documents.shutil.rmtree = die
store = documents.DocumentStore(
    OpenSource("s", "s", Reading("text"), files), Filters(), folder / "cache", 1 << 40, fetch
)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([found and found.text for found in map(store.get, range(store.rows))]))
"""


def start(folder: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), mode]
    root = Path(documents.__file__).parents[2]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root)


def prepared(tmp_path: Path) -> tuple[OpenSource, list[str | None]]:
    opened = source(*some_files(tmp_path / "in"))
    entries = [[file.entry, file.location] for file in opened.files]
    (tmp_path / "files.json").write_text(json.dumps(entries))
    wanted = read_all(opened, Filters())
    return opened, [wanted[number].text if number in wanted else None for number in range(opened.rows)]


def test_two_processes_make_a_bundle_once(tmp_path: Path) -> None:
    opened, wanted = prepared(tmp_path)
    processes = [start(tmp_path, "live") for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    found = [process.communicate("go\n")[0] for process in processes]
    assert [json.loads(texts) for texts in found] == [wanted, wanted]
    # Local files are looked at once more after they were read.
    fetched = (tmp_path / "log").read_text().split()
    with_rows = [file.name for file in opened.files if file.rows]
    assert sorted(fetched) == sorted(with_rows * 2)
    assert len(arrow_files(tmp_path / "cache")) == 1


def test_a_killed_process_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    _, wanted = prepared(tmp_path)
    for _ in range(2):
        process = start(tmp_path, "die")
        process.communicate("go\n")
        assert process.returncode == -9
        assert arrow_files(tmp_path / "cache") == []
        assert len(list((tmp_path / "cache").glob(".*.tmp"))) == 1
        assert len(list((tmp_path / "cache").glob("*.downloads"))) == 1
    found, _ = start(tmp_path, "live").communicate("go\n")
    assert json.loads(found.splitlines()[1]) == wanted
    assert not list((tmp_path / "cache").glob(".*.tmp"))
    assert not list((tmp_path / "cache").glob("*.downloads"))


def test_threads_of_a_process_may_share_a_store(tmp_path: Path) -> None:
    opened, wanted = prepared(tmp_path)
    store = DocumentStore(opened, Filters(), tmp_path / "cache", PLENTY, counting(tmp_path / "log"))
    found: list[list[str | None]] = []

    def work() -> None:
        read = [store.get(number) for number in range(store.rows)]
        found.append([document and document.text for document in read])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4
    assert len((tmp_path / "log").read_text().split()) == 2 * sum(file.rows > 0 for file in opened.files)


# Space ------------------------------------------------------------------------------------------------


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], DocumentStore]:
    """Stores over five files of a bundle each, about 20 kB on disk, under a limit."""
    monkeypatch.setattr(documents, "BUNDLE_BYTES", 1)
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(str(number) * 20_000)
    opened = source(*sorted(tmp_path.glob("*.txt")))
    return lambda limit: DocumentStore(opened, Filters(), tmp_path / "cache", limit)


def test_the_least_recently_used_go_first(tmp_path: Path, bundles: Callable[[int], DocumentStore]) -> None:
    store, made = bundles(50_000), []
    for number in range(4):
        store.get(number)
        made += [path for path in arrow_files(tmp_path / "cache") if path not in made]
    assert len(arrow_files(tmp_path / "cache")) == 4  # over the limit, but all young
    for path, seconds in zip(made, (500, 400, 300, 200), strict=True):
        age(path, seconds)
    bundles(50_000).get(0)  # opening it makes it young again
    bundles(50_000).get(4)
    left = arrow_files(tmp_path / "cache")
    assert made[0] in left and len(left) == 2 and not {*made[1:]} & {*left}
    assert store.get(1).text == "1" * 20_000  # type: ignore[union-attr]  # still mapped
    assert bundles(PLENTY).get(2).text == "2" * 20_000  # type: ignore[union-attr]  # made again


def test_a_bundle_in_use_stays_young(
    tmp_path: Path, bundles: Callable[[int], DocumentStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bundles(PLENTY)
    store.get(0)
    (made,) = arrow_files(tmp_path / "cache")
    age(made, 500)
    store.get(0)
    assert time.time() - made.stat().st_mtime > 400
    monkeypatch.setattr(documents, "YOUNG", 0.0)
    store.get(0)
    assert time.time() - made.stat().st_mtime < 100


def test_few_bundles_are_open_at_a_time(
    tmp_path: Path, bundles: Callable[[int], DocumentStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "OPEN_BUNDLES", 2)
    store = bundles(PLENTY)
    for _ in range(2):
        for number in range(5):
            assert store.get(number).text == str(number) * 20_000  # type: ignore[union-attr]
    mapped = Path("/proc/self/maps").read_text().count(f"{tmp_path}/cache/")
    assert mapped == 2


def test_abandoned_downloads_are_removed(tmp_path: Path, bundles: Callable[[int], DocumentStore]) -> None:
    for name, seconds in (("aa.downloads", 2 * ABANDONED), ("bb.downloads", 0)):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "part").write_text("x")
        age(tmp_path / "cache" / name / "part", seconds)
        age(tmp_path / "cache" / name, 2 * ABANDONED)
    bundles(PLENTY).get(0)
    assert [path.name for path in (tmp_path / "cache").glob("*.downloads")] == ["bb.downloads"]


def test_a_flipped_byte_in_the_cache_is_never_taken(tmp_path: Path, jsonl: Any) -> None:
    cache = tmp_path / "cache"
    opened = source(jsonl("a.jsonl", [{"text": "one two"}, {"text": "three four"}]))
    DocumentStore(opened, Filters(), cache, PLENTY).get(0)
    (path,) = cache.glob("*.arrow")
    path.write_bytes(path.read_bytes().replace(b"three", b"thrae"))
    store = DocumentStore(opened, Filters(), cache, PLENTY)
    assert store.get(0).text == "one two"  # type: ignore[union-attr]
    with pytest.raises(UmbelError, match=r"\.arrow: is damaged \(row 1\); delete it"):
        store.get(1)
