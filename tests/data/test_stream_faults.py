"""A streamed run over servers that fail: the same batches, or one line that names the file."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from base.errors import UmbelError
from configs.compose import compose
from data.places import retry
from data.places.retry import BadFile, ChangedFile
from data.prepare import prepare_run
from data.stream import BatchStream, Share
from support.elastic import LENGTH, write_sources
from support.servers import Server, files, forward

moto = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

BUCKET = "corpus"
FAULTS = ("503", "429", "truncate", "flip", "stall", "reset")
STEPS = range(1, 25)
Batches = list[list[list[list[int]]]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_sources(folder)
    return folder


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("ATTEMPTS", 4),
        ("FIRST_WAIT", 0.01),
        ("LONGEST_WAIT", 0.02),
        ("STALL_SECONDS", 0.5),
    ):
        monkeypatch.setattr(retry, name, value)


@pytest.fixture(scope="module")
def http(corpus: Path) -> Iterator[Server]:
    with Server(files({f"/{path.name}": path.read_bytes() for path in corpus.glob("*.jsonl")})) as server:
        yield server


@pytest.fixture(scope="module")
def s3(corpus: Path) -> Iterator[Server]:
    import boto3

    behind = moto.ThreadedMotoServer(port=0, verbose=False)
    behind.start()
    host, port = behind.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch, Server(forward(f"http://{host}:{port}")) as server:
        for name, value in (
            ("ACCESS_KEY_ID", "x"),
            ("SECRET_ACCESS_KEY", "y"),
            ("DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        for path in corpus.glob("*.jsonl"):
            client.put_object(Bucket=BUCKET, Key=path.name, Body=path.read_bytes())
        yield server
    behind.stop()


@pytest.fixture(params=["http", "s3"])
def place(request: pytest.FixtureRequest) -> tuple[Server, str]:
    """A server without faults, and where it has the large source's files."""
    server: Server = request.getfixturevalue(request.param)
    server.reset()
    if request.param == "s3":
        from s3fs import S3FileSystem

        S3FileSystem.clear_instance_cache()
    return server, f"s3://{BUCKET}/large-*.jsonl" if request.param == "s3" else f"{server.url}/large-0.jsonl"


@pytest.fixture
def streaming(corpus: Path, tmp_path: Path) -> Callable[..., BatchStream]:
    """A streamed run over one source, with a cache of its own."""

    def opened(path: str, *overrides: str) -> BatchStream:
        config = compose(
            [
                "run.name=faults",
                "model=llama_tiny",
                f'data.path="{path}"',
                "data.mode=streaming",
                f'data.tokenizer.path="{corpus / "tokenizer.json"}"',
                f'data.cache_dir="{tmp_path / "cache"}"',
                f"data.sequence_length={LENGTH}",
                "data.held_out=0",
                "schedule.global_batch=8",
                "data.workers=0",
                *overrides,
            ]
        )
        return BatchStream(prepare_run(config), config)

    return opened


def forget(folder: Path) -> None:
    """What indexing and the held-out rows have fetched goes: the stream must fetch it again."""
    for kept in ("documents", "fetched"):
        for file in (folder / "cache" / kept).rglob("*.*"):
            file.unlink()


def read(stream: BatchStream) -> Batches:
    with stream.read(STEPS, Share(micro_batch=8)) as steps:
        return [[batch.input_ids.tolist() for batch in step.batches] for step in steps]


@pytest.fixture
def expected(corpus: Path, place: tuple[Server, str], tmp_path: Path, streaming: Any) -> Batches:
    """What the same files give when they lie on this machine."""
    local = corpus / place[1].rpartition("/")[2]
    return read(streaming(str(local), f'data.cache_dir="{tmp_path / "local"}"'))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_no_batch(
    place: tuple[Server, str], streaming: Any, expected: Batches, tmp_path: Path, fault: str
) -> None:
    server, path = place
    stream = streaming(path)
    forget(tmp_path)
    server.fail(fault, "GET .*large-0.jsonl", times=2)
    assert read(stream) == expected
    assert server.count("GET .*large-0.jsonl") >= 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_one_line_with_the_file(
    place: tuple[Server, str], streaming: Any, tmp_path: Path, fault: str
) -> None:
    server, path = place
    stream = streaming(path)
    forget(tmp_path)
    server.fail(fault, "GET .*large-0.jsonl", times=10**6)
    with pytest.raises(UmbelError, match=r"large-0\.jsonl") as told:
        read(stream)
    assert "\n" not in str(told.value)
    assert isinstance(told.value, BadFile | ChangedFile)


def test_one_download_serves_all_processes_of_a_node(
    place: tuple[Server, str], streaming: Any, expected: Batches, tmp_path: Path
) -> None:
    server, path = place
    stream = streaming(path, "data.workers=3")
    forget(tmp_path)
    server.reset()
    assert read(stream) == expected
    assert server.count("GET .*large-0.jsonl") == 1


def test_other_content_under_the_same_name_is_never_taken(
    corpus: Path, streaming: Any, tmp_path: Path
) -> None:
    content = {"/a.jsonl": (corpus / "large-0.jsonl").read_bytes()}
    with Server(files(content)) as server:
        stream = streaming(f"{server.url}/a.jsonl")
        for file in (tmp_path / "cache" / "documents").rglob("*.arrow"):
            file.unlink()
        lines = content["/a.jsonl"].splitlines(keepends=True)
        content["/a.jsonl"] = b"".join([*lines[1:], lines[0]])  # as many rows, as many bytes
        for file in (tmp_path / "cache" / "fetched").rglob("*-a.jsonl"):
            file.unlink()
        with pytest.raises(ChangedFile, match=r"a\.jsonl"):
            read(stream)


def test_a_file_that_is_left_out_is_passed_over(corpus: Path, streaming: Any) -> None:
    whole = streaming(str(corpus / "large-*.jsonl"))
    without = BatchStream(whole.prepared, whole.config, {"data": ["large-1.jsonl"]})
    words = [whole.prepared.tokenizer.backend.id_to_token(index) for index in range(20_000)]

    def documents(stream: BatchStream) -> set[int]:
        ids = {token for step in read(stream) for batch in step for row in batch for token in row}
        return {int(words[token].split(":")[1]) for token in ids if ":" in words[token]}

    last = len((corpus / "large-0.jsonl").read_text().splitlines())
    assert max(documents(whole)) >= last
    assert max(documents(without)) < last
    assert json.dumps(without.left_out)


def test_patience_is_told(
    place: tuple[Server, str], streaming: Any, expected: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    server, path = place
    server.fail("503", "GET .*large-0.jsonl", times=2)
    assert read(streaming(path)) == expected
    told = [record.getMessage() for record in caplog.records if record.name == "umbel.data"]
    assert "large-0.jsonl: cannot be fetched" in told[0]
    assert f"; try 2 of {retry.ATTEMPTS} in 0 s" in told[0]


def test_what_looking_ahead_has_tried_is_not_tried_again(
    place: tuple[Server, str], streaming: Any, tmp_path: Path
) -> None:
    server, path = place
    stream = streaming(path)
    forget(tmp_path)
    server.reset()
    server.fail("503", "GET .*large-0.jsonl", times=10**6)
    source = stream._sources["data"]
    assert source.ahead is not None
    source.ahead.expect(0)
    number = source.order.number(0)
    assert number is not None
    while threading.active_count() > 1 and any("_open" in thread.name for thread in threading.enumerate()):
        time.sleep(0.02)
    with pytest.raises(BadFile, match=r"large-0\.jsonl"):
        source.ahead.check(number)
    assert server.count("GET .*large-0.jsonl") <= 2 * retry.ATTEMPTS
    source.ahead.check(number)  # told once: whoever comes later tries anew
