from __future__ import annotations

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from base.errors import UmbelError
from data.files import SourceFile
from data.places import retry
from data.places.pins import pin_of
from data.places.remote import fetch, fetched_path, remove
from data.places.retry import BadFile, ChangedFile
from support.processes import run_workers
from support.servers import Response, Server, files

CONTENT = b"".join(b'{"text": "line %d"}\n' % number for number in range(5000))
CHILD = """
import sys
from pathlib import Path
from data.files import SourceFile
from data.places.remote import fetch
name, location, size, pin, folder = sys.argv[1:]
print(fetch(SourceFile(name, location, "jsonl", int(size), pin, 5000), Path(folder)))
"""


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def wanted(server: Server, pin: str = sha256(CONTENT), size: int = len(CONTENT)) -> SourceFile:
    return SourceFile("a.jsonl", f"{server.url}/a.jsonl", "jsonl", size, pin, 5000)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(files({"/a.jsonl": CONTENT}, etags=True)) as running:
        yield running


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 4)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(retry, "STALL_SECONDS", 0.3)


@pytest.mark.parametrize("fault", ["503", "429", "truncate", "short", "flip", "stall", "reset"])
def test_faults_that_pass_change_nothing(server: Server, tmp_path: Path, fault: str) -> None:
    server.fail(fault, "GET /a.jsonl", times=2 if fault != "429" else 1)
    start = time.monotonic()
    assert fetch(wanted(server), tmp_path).read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == [fetched_path(wanted(server), tmp_path).name]
    assert fault != "429" or time.monotonic() - start >= 1  # its Retry-After


@pytest.mark.parametrize("fault", ["503", "truncate", "short", "stall", "reset"])
def test_faults_that_stay_are_told_with_the_file(server: Server, tmp_path: Path, fault: str) -> None:
    server.fail(fault, "GET /a.jsonl", times=99)
    with pytest.raises(BadFile) as caught:
        fetch(wanted(server), tmp_path)
    assert str(caught.value).startswith(f"{server.url}/a.jsonl: cannot be fetched after 4 tries (")
    assert list(tmp_path.iterdir()) == []


def test_a_byte_that_stays_flipped_is_told_with_both_hashes(server: Server, tmp_path: Path) -> None:
    server.fail("flip", "GET /a.jsonl", times=99)
    flipped = bytearray(CONTENT)
    flipped[len(CONTENT) // 2] ^= 1
    with pytest.raises(ChangedFile) as caught:
        fetch(wanted(server), tmp_path)
    message = f"has changed ({sha256(bytes(flipped))} in place of {sha256(CONTENT)})"
    assert message in str(caught.value)
    assert server.count("GET /a.jsonl") == 4
    assert list(tmp_path.iterdir()) == []


def test_refusals_are_told_at_once(tmp_path: Path) -> None:
    with Server(files({})) as server:
        with pytest.raises(BadFile, match="is not there; check the address"):
            fetch(wanted(server), tmp_path)
        assert len(server.requests) == 1
    for status in (401, 403):
        with Server(lambda _, status=status: Response(status)) as server:
            with pytest.raises(BadFile, match=f"access is refused .HTTP {status}.; give this machine's"):
                fetch(wanted(server), tmp_path)
            assert len(server.requests) == 1


def test_an_etag_that_moved_is_another_file(tmp_path: Path) -> None:
    content = {"/a.jsonl": CONTENT}
    with Server(files(content, etags=True)) as server:
        pinned = wanted(server, pin=f"etag:{hashlib.sha1(CONTENT).hexdigest()[:8]}")
        assert fetch(pinned, tmp_path).read_bytes() == CONTENT
        remove(pinned, tmp_path)
        assert list(tmp_path.iterdir()) == []
        content["/a.jsonl"] = CONTENT.replace(b"line 7", b"LINE 7")
        with pytest.raises(ChangedFile, match=r"etag:.* in place of etag:"):
            fetch(pinned, tmp_path)
        content["/a.jsonl"] = CONTENT + b"{}\n"
        with pytest.raises(ChangedFile):
            fetch(pinned, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_packed_file_stays_packed_whatever_the_server_calls_it(tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT)
    with Server(lambda _: Response(200, packed, {"Content-Encoding": "gzip"})) as server:
        assert fetch(wanted(server, sha256(packed), len(packed)), tmp_path).read_bytes() == packed


def test_a_damaged_download_is_fetched_again(server: Server, tmp_path: Path) -> None:
    path = fetch(wanted(server), tmp_path)
    assert fetch(wanted(server), tmp_path) == path
    assert server.count("GET") == 1
    path.write_bytes(CONTENT.replace(b"line 7", b"LINE 7"))
    assert fetch(wanted(server), tmp_path).read_bytes() == CONTENT


def fetch_in_child(url: str, folder: str) -> str:
    file = SourceFile("a.jsonl", url, "jsonl", len(CONTENT), sha256(CONTENT), 5000)
    return str(fetch(file, Path(folder)))


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    slow = files({"/a.jsonl": CONTENT})

    def answer(request):
        time.sleep(0.5)
        return slow(request)

    with Server(answer) as server:
        paths = run_workers(3, fetch_in_child, f"{server.url}/a.jsonl", str(tmp_path), gloo=False)
        assert len(set(paths)) == 1
        assert server.count("GET") == 1
    assert Path(paths[0]).read_bytes() == CONTENT
    assert len(list(tmp_path.iterdir())) == 1


def test_a_kill_in_a_download_leaves_nothing_that_counts(server: Server, tmp_path: Path) -> None:
    server.fail("stall", "GET /a.jsonl")
    file = wanted(server)
    command = [sys.executable, "-c", CHILD, file.name, file.location, str(file.size), file.pin, str(tmp_path)]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    part = fetched_path(file, tmp_path).with_name(f".{fetched_path(file, tmp_path).name}.part")
    end = time.monotonic() + 20
    while not part.exists():
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert part.exists() and not fetched_path(file, tmp_path).exists()
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert [found.name for found in tmp_path.iterdir()] == [fetched_path(file, tmp_path).name]


def test_local_files_are_checked_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT)
    file = SourceFile("a.jsonl", str(path), "jsonl", len(CONTENT), sha256(CONTENT), 5000)
    assert fetch(file, tmp_path / "none") == path
    remove(file, tmp_path / "none")
    assert path.exists()
    path.write_bytes(CONTENT.replace(b"line 7", b"LINE 7"))
    with pytest.raises(
        ChangedFile, match=f"{path}: has changed .sha256:.* in place of sha256:.*; restore it"
    ):
        fetch(file, tmp_path)
    path.unlink()
    with pytest.raises(BadFile, match=f"{path}: cannot be read .No such file"):
        fetch(file, tmp_path)


def test_pins_are_those_of_git_and_md5sum(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"umbel\n")
    git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    assert pin_of(path, "git") == f"git:{git.stdout.strip()}"
    assert pin_of(path, "md5") == f"md5:{hashlib.md5(b'umbel' + bytes([10])).hexdigest()}"


def test_a_full_disk_is_no_bad_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        retry.persist(full, "x")


def test_errors_of_ours_are_not_tried_again() -> None:
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise UmbelError("no")

    with pytest.raises(UmbelError, match="no"):
        retry.persist(refuse, "x")
    assert len(calls) == 1


def test_a_signed_url_that_a_server_redirected_to_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 1)

    def broken() -> None:
        raise RuntimeError("503 for url 'https://cdn.host/a?X-Amz-Signature=0123abcd&X-Amz-Date=1' (why?)")

    with pytest.raises(BadFile, match=r"url 'https://cdn\.host/a' \(why\?\)"):
        retry.persist(broken, "hf://datasets/a/b")
