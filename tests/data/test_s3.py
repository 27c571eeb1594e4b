"""Sources in a bucket, against a real S3 server (moto) behind a proxy that fails when it is told to."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from base.errors import UmbelError
from configs.schema import Data, Filters, Source
from data.places import retry
from data.places.remote import fetch
from data.places.retry import BadFile, ChangedFile
from data.readers import read
from data.sources import locate, open_sources
from support.servers import Server, forward

moto = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

ROWS = 2500
BUCKET = "corpus"


def parquet(tag: str, rows: int) -> bytes:
    sink = io.BytesIO()
    texts = [f"{tag} {number}" for number in range(rows)]
    pq.write_table(pa.table({"text": texts}), sink, row_group_size=1000)
    return sink.getvalue()


OBJECTS = {
    "in/b.parquet": parquet("b", ROWS),
    "in/a.parquet": parquet("a", 10),
    "in/.hidden/c.parquet": parquet("c", 1),
    "lines/x.jsonl": b"".join(json.dumps({"text": f"x {number}"}).encode() + b"\n" for number in range(2100)),
    "pages/1.txt": b"one",
    "pages/2.txt": b"two",
}


@pytest.fixture(scope="module")
def proxy() -> Iterator[Server]:
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with Server(forward(f"http://{host}:{port}")) as running:
        yield running
    server.stop()


@pytest.fixture
def bucket(proxy: Server, monkeypatch: pytest.MonkeyPatch):
    """A client of the filled bucket."""
    import boto3
    from s3fs import S3FileSystem

    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "y"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(retry, "ATTEMPTS", 4)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(retry, "STALL_SECONDS", 0.5)
    S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for key, body in OBJECTS.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=body)
    proxy.reset()
    return client


def texts(path: str, cache: Path, **settings) -> list[str]:
    data = Data(sources={"a": Source(path=path, **settings)})
    source = open_sources(data, cache)["a"]
    return [
        document.text
        for index, file in enumerate(source.files)
        for document in read(
            fetch(file, cache / "fetched"), file, source.reading, Filters(), source.first_number(index)
        )
    ]


WANTED = [f"a {number}" for number in range(10)] + [f"b {number}" for number in range(ROWS)]


def test_folders_globs_and_files(bucket, proxy: Server, tmp_path: Path) -> None:
    assert texts(f"s3://{BUCKET}/in", tmp_path) == WANTED
    assert texts(f"s3://{BUCKET}/in/*.parquet", tmp_path) == WANTED
    assert texts(f"s3://{BUCKET}/in/a.parquet", tmp_path) == WANTED[:10]
    assert texts(f"s3://{BUCKET}/pages", tmp_path) == ["one", "two"]
    assert len(texts(f"s3://{BUCKET}/lines/x.jsonl", tmp_path)) == 2100


def test_what_a_manifest_names_is_found_again(bucket, tmp_path: Path) -> None:
    for path in ("in", "in/*.parquet", "*/*.parquet", "in/a.parquet", "pages"):
        source = Source(path=f"s3://{BUCKET}/{path}")
        files = open_sources(Data(sources={"a": source}), tmp_path)["a"].files
        assert files
        assert [locate(source, file.name, None) for file in files] == [file.location for file in files]


def test_only_footers_of_parquet_are_read(bucket, proxy: Server, tmp_path: Path) -> None:
    source = open_sources(Data(path=f"s3://{BUCKET}/in"), tmp_path)["data"]
    assert [file.name for file in source.files] == ["a.parquet", "b.parquet"]
    assert [file.rows for file in source.files] == [10, ROWS]
    assert source.files[1].blocks == ((0, 0), (1000, 1), (2000, 2))
    assert source.files[1].pin.startswith("md5:")
    assert not (tmp_path / "fetched").exists()
    proxy.reset()
    assert open_sources(Data(path=f"s3://{BUCKET}/in", format="text"), tmp_path)["data"] == source
    assert proxy.count("GET .*parquet") == 0


@pytest.mark.parametrize("fault", ["503", "429", "truncate", "flip", "stall", "reset"])
def test_faults_that_pass_change_nothing(bucket, proxy: Server, tmp_path: Path, fault: str) -> None:
    for on in (f"GET /{BUCKET}$", "GET .*a.parquet", "GET .*b.parquet", "HEAD"):
        if not (fault == "flip" and on == f"GET /{BUCKET}$"):
            proxy.fail(fault, on)
    assert texts(f"s3://{BUCKET}/in", tmp_path) == WANTED


@pytest.mark.parametrize("fault", ["503", "429", "truncate", "stall", "reset"])
def test_faults_that_stay_name_the_file(
    bucket, proxy: Server, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    source = open_sources(Data(path=f"s3://{BUCKET}/in"), tmp_path)["data"]
    proxy.fail(fault, "GET .*b.parquet", times=99)
    with pytest.raises(BadFile, match=f"s3://{BUCKET}/in/b.parquet: cannot be fetched after"):
        fetch(source.files[1], tmp_path / "fetched")


@pytest.mark.parametrize("checksums", [True, False])
def test_a_flipped_byte_that_stays_is_never_taken(
    bucket, proxy: Server, tmp_path: Path, checksums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Newer servers send a checksum with the bytes, and botocore checks it before the pin is.
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_supported" if checksums else "when_required")
    wanted, what = (
        (BadFile, r"Expected checksum \S+ did not match")
        if checksums
        else (ChangedFile, r"has changed .md5:\w+ in place of md5:")
    )
    source = open_sources(Data(path=f"s3://{BUCKET}/in"), tmp_path)["data"]
    proxy.fail("flip", "GET .*b.parquet", times=99)
    with pytest.raises(wanted, match=f"b.parquet: .*{what}"):
        fetch(source.files[1], tmp_path / "fetched")


def test_a_changed_object_is_named(bucket, proxy: Server, tmp_path: Path) -> None:
    source = open_sources(Data(path=f"s3://{BUCKET}/in"), tmp_path)["data"]
    bucket.put_object(Bucket=BUCKET, Key="in/b.parquet", Body=parquet("B", ROWS))
    proxy.reset()
    with pytest.raises(ChangedFile, match=r"b.parquet: has changed .md5:\w+ in place of md5:"):
        fetch(source.files[1], tmp_path / "fetched")
    assert proxy.count("GET .*b.parquet") == 1


def test_uploads_in_parts_are_hashed_or_trusted(bucket, proxy: Server, tmp_path: Path) -> None:
    upload = bucket.create_multipart_upload(Bucket=BUCKET, Key="big/p.txt")["UploadId"]
    part = {"Bucket": BUCKET, "Key": "big/p.txt", "UploadId": upload}
    tag = bucket.upload_part(**part, PartNumber=1, Body=b"whole")["ETag"]
    bucket.complete_multipart_upload(**part, MultipartUpload={"Parts": [{"ETag": tag, "PartNumber": 1}]})
    path = f"s3://{BUCKET}/big"
    assert open_sources(Data(path=path), tmp_path)["data"].files[0].pin.startswith("sha256:")
    trusting = Data(sources={"a": Source(path=path, trust_etag=True)})
    file = open_sources(trusting, tmp_path)["a"].files[0]
    assert file.pin.startswith("etag:") and file.pin.endswith("-1")
    assert fetch(file, tmp_path / "fetched").read_bytes() == b"whole"


def test_the_etag_of_an_encrypted_object_is_no_md5(bucket, tmp_path: Path) -> None:
    bucket.put_object(Bucket=BUCKET, Key="kms/a.txt", Body=b"one", ServerSideEncryption="aws:kms")
    file = open_sources(Data(path=f"s3://{BUCKET}/kms"), tmp_path)["data"].files[0]
    assert file.pin.startswith("sha256:")


def test_what_is_missing_is_named(bucket, tmp_path: Path) -> None:
    for path, what in (("none", "is not there"), ("none/*.txt", "no files there")):
        with pytest.raises(UmbelError, match=what) as caught:
            open_sources(Data(path=f"s3://{BUCKET}/{path}"), tmp_path)
        assert f"s3://{BUCKET}/{path}" in str(caught.value)
    with pytest.raises(UmbelError, match="is not there"):
        open_sources(Data(path="s3://no-such-bucket/x"), tmp_path)


def test_bad_files_are_skipped_by_name(bucket, proxy: Server, tmp_path: Path) -> None:
    bucket.put_object(Bucket=BUCKET, Key="in/a.parquet", Body=b"no parquet")
    path = f"s3://{BUCKET}/in"
    with pytest.raises(UmbelError, match=r"a.parquet: is no Parquet file"):
        open_sources(Data(path=path), tmp_path)
    source = open_sources(Data(path=path, on_bad_file="skip"), tmp_path)["data"]
    assert source.skipped == ("a.parquet",)
    assert [file.name for file in source.files] == ["b.parquet"]
