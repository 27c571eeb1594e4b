"""Hostile and damaged checkpoints: each is refused by one line, and nothing outside the folder is touched."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from base.errors import UmbelError
from base.files import sha256_file
from checkpoint.format import Damaged
from checkpoint.manifest import seal
from checkpoint.reader import StateReader
from checkpoint.safetensors import parse_header
from checkpoint.verify import verify
from support.portable_state import make_state, save

FIRST = "state-00001-of-00002.safetensors"


# A pickle, written by hand: whoever loads it makes a folder.
BOMB = b"cos\nmkdir\n(S'executed'\ntR."


@pytest.fixture
def folder(checkpoints: Path) -> Path:
    return save(checkpoints, make_state())


def refused(folder: Path, message: str = ".", mode: Any = "full") -> str:
    with pytest.raises(Damaged, match=message) as caught:
        verify(folder, mode)
    text = str(caught.value)
    assert text.isprintable(), "one line"
    assert len(text) < 1000
    assert str(folder) in text
    return text


def rewrite(path: Path, raw: bytes) -> None:
    """Put content into a state file and make the manifest's size and sha256 agree with it."""
    path.write_bytes(raw)
    change(path.parent, lambda m: entry(m, path.name).update(size=len(raw), sha256=sha256_file(path)))


def change(folder: Path, edit: Callable[[dict], object]) -> None:
    """Edit the manifest as its writer could have: sealed again."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    edit(manifest)
    path.write_bytes(seal(manifest))


def entry(manifest: dict, name: str) -> dict:
    return next(file for file in manifest["files"] if file["name"] == name)


def split(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(header: dict | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_whole_one_passes_both_ways(folder: Path) -> None:
    verify(folder, "full")
    verify(folder, "sizes")


def test_a_flipped_byte_is_found_and_its_file_named(folder: Path) -> None:
    path = folder / FIRST
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 16
    path.write_bytes(raw)
    assert FIRST in refused(folder, "its content is not what was saved")
    verify(folder, "sizes")


@pytest.mark.parametrize("name", [FIRST, "manifest.json"])
def test_a_cut_file_is_found_by_size_alone(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] if name == FIRST else path.read_bytes()[:-9])
    assert name in refused(folder, mode="sizes")


@pytest.mark.parametrize("name", [FIRST, "manifest.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder, "missing|cannot be read", "sizes")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_by_another_name_is_refused_and_never_run(
    folder: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    rewrite(folder / FIRST, b"\x80" + bytes([protocol]) + BOMB)
    refused(folder, "is a pickle, not a safetensors file; pickles run code")
    with pytest.raises(Damaged), StateReader(folder) as reader:
        reader.read("wte.weight", "master")
    assert not Path("executed").exists()


def test_a_torch_archive_by_another_name_is_refused(folder: Path) -> None:
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    rewrite(folder / FIRST, buffer.getvalue())
    refused(folder, "is a pickle")


@pytest.mark.parametrize("name", ["notes.txt", "state-00003-of-00003.safetensors", "weights.pt", ".hidden"])
def test_a_file_beside_the_manifest_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    refused(folder, "is not in the manifest; move it out")


def test_symbolic_links_are_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (folder / FIRST).rename(outside)
    (folder / FIRST).symlink_to(outside)
    refused(folder, "is a symbolic link", "sizes")
    with pytest.raises(Damaged, match="symbolic link"), StateReader(folder) as reader:
        reader.read("wte.weight", "master")
    (folder.parent / "step-00000101").symlink_to(folder)
    with pytest.raises(Damaged):
        verify(folder.parent / "step-00000101")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused_without_waiting(folder: Path, kind: str) -> None:
    (folder / FIRST).unlink()
    os.mkfifo(folder / FIRST) if kind == "pipe" else (folder / FIRST).mkdir()
    refused(folder, "no regular file|Is a directory")


@pytest.mark.parametrize(
    "name",
    [
        "../state-1.safetensors",
        "/etc/passwd",
        "state-..safetensors/x",
        "state-1.pt",
        "",
        "state-\n.safetensors",
    ],
)
def test_a_name_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    change(folder, lambda m: entry(m, FIRST).update(name=name))
    refused(folder, r"files\[0\]: 'name' must be a name like state-\*\.safetensors")


@pytest.mark.parametrize(
    "key", ["../x|master", "a/b|master", "a\\b|master", "a\0b|master", "x", "x|", "|master"]
)
def test_a_tensor_named_like_a_path_is_refused(folder: Path, key: str) -> None:
    def edit(manifest: dict) -> None:
        fragments = entry(manifest, FIRST)["fragments"]
        fragments[key] = fragments.pop("wte.weight|master")

    change(folder, edit)
    refused(folder, "may not name a tensor|is no tensor key")


EDITS: dict[str, Callable[[dict], object]] = {
    "lacks 'tokens'": lambda m: m.pop("tokens"),
    "unknown field 'more'": lambda m: m.update(more=1),
    "'step' must be": lambda m: m.update(step=1.5),
    "'parent' must be": lambda m: m.update(parent="A" * 64),
    "'format' must be": lambda m: m.update(format="other"),
    "'format_version' must be 1": lambda m: m.update(format_version=True),
    "folder of another step": lambda m: m.update(step=99),
    r"groups\[1\] lacks 'hyperparameters'": lambda m: m["groups"][1].pop("hyperparameters"),
    "'zero_stage' must be": lambda m: m["topology"].update(zero_stage=4),
    "'sha256' must be": lambda m: m["files"][0].update(sha256="0" * 63),
    "a name occurs twice": lambda m: m["files"].append(m["files"][0]),
    "must have a shape": lambda m: m["parameters"].update({"h.0.bias": [-5]}),
    "as many offsets": lambda m: m["files"][0]["fragments"]["scale|master"].update(offsets=[0, 0]),
    "'dtype' must be": lambda m: m["files"][0]["fragments"]["scale|master"].update(dtype="FLOAT"),
    "the manifest differ at 'scale": lambda m: m["files"][0]["fragments"]["scale|master"].update(dtype="U32"),
    "are saved twice": lambda m: m["files"][1]["fragments"]["wte.weight|master"].update(offsets=[10]),
    "elements 11 to 12 of": lambda m: m["files"][1]["fragments"]["wte.weight|master"].update(offsets=[12]),
    "are not saved": lambda m: m["files"][1]["fragments"].pop("wte.weight|exp_avg"),
    "and has 20": lambda m: m["parameters"].update({"wte.weight": [20]}),
    "'base.weight' is saved with shape": lambda m: m["parameters"].update({"base.weight": [3, 4]}),
    "not saved as frozen": lambda m: m["parameters"].update({"lost": [3]}),
    "is in no optimizer group": lambda m: m["groups"].pop(0),
    "but is no parameter": lambda m: m["groups"][0]["names"].append("ghost"),
    "but saved as frozen": lambda m: m["groups"][0]["names"].append("base.weight"),
    "saved as a buffer": lambda m: m["parameters"].update(position_ids=[1, 4]),
    "in part only": lambda m: m["files"][0]["fragments"]["position_ids|buffer"].update(offsets=[0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("message", EDITS)
def test_a_manifest_that_is_wrong_says_where(folder: Path, message: str) -> None:
    change(folder, EDITS[message])
    refused(folder, message, "sizes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"[1]", "checksum differs"),
        (b"{}", "checksum differs"),
        (b"[" + seal({"a": 1})[1:-2] + b"]", "is not JSON"),
        (seal({"a": 1}), "lacks"),
        (b"{} {}", "is not JSON"),
        (b'{"a":1,"a":2}', "a key occurs twice"),
        (b'{"a":NaN}', "NaN is no JSON number"),
        (b'{"a":1e999}', "a number is too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 2000 + b" " * 9000, "nested too deep"),
        (b"[" * 3_000_000, "more brackets"),
        (b"[" + b"{}," * 1_000_000 + b"{}]", "more brackets"),
        (seal({"\ud800": 1}), "lacks"),
    ],
    ids=range(15),
)
def test_a_manifest_that_is_no_honest_json_is_refused(folder: Path, text: bytes, message: str) -> None:
    (folder / "manifest.json").write_bytes(text)
    refused(folder, message)


def test_a_manifest_larger_than_the_limit_is_not_read(folder: Path) -> None:
    with open(folder / "manifest.json", "ab") as file:
        file.truncate(1 << 40)
    refused(folder, "is larger than 256.0 MiB")


def hostile_headers() -> dict[str, Callable[[dict, bytes], bytes]]:
    def tensor(**values: Any) -> Callable[[dict, bytes], bytes]:
        return lambda header, data: join({**header, "scale|master": header["scale|master"] | values}, data)

    return {
        "header length is impossible": lambda h, d: struct.pack("<Q", 1 << 62) + b"{}" + d,
        "no JSON object": lambda h, d: join(b"[]", d),
        "is not a safetensors file": lambda h, d: b"\x02",
        "a key occurs twice": lambda h, d: join(json.dumps(h).encode()[:-1] + b',"__metadata__":{}}', d),
        "that is not text by name": lambda h, d: join({**h, "__metadata__": {"format": 1}}, d),
        "needs exactly dtype": tensor(more=1),
        "unknown dtype": tensor(dtype="F4"),
        "unknown dtype ": tensor(dtype=["F32"]),
        "impossible shape": tensor(shape=[-1, -1]),
        "impossible shape ": tensor(shape=[1] * 17),
        "impossible shape  ": tensor(shape=[True]),
        "impossible offsets": tensor(data_offsets=[0]),
        "impossible offsets ": tensor(data_offsets=[-4, 0]),
        "impossible offsets  ": tensor(data_offsets=[0, 1 << 64]),
        "spans 8 bytes": tensor(data_offsets=[0, 8]),
        "its dtype and shape need": tensor(shape=[1 << 62, 1 << 62]),
        "overlaps": tensor(data_offsets=[0, 4]),
        "leaves a hole|overlaps": tensor(data_offsets=[1 << 40, (1 << 40) + 4]),
        "its header speaks of": lambda h, d: join(h, d + b"\0" * 8),
        "its header speaks of ": lambda h, d: join(h, d[:-8]),
        "says no offsets": lambda h, d: join({**h, "__metadata__": {}}, d),
        "says no offsets ": lambda h, d: join({**h, "__metadata__": {"DCP_SHARDING_INFO": "[]"}}, d),
        "is not JSON": lambda h, d: join({**h, "__metadata__": {"DCP_SHARDING_INFO": "{"}}, d),
        "manifest differ at 'scale.master'": tensor(dtype="I32"),
    }  # fmt: skip


@pytest.mark.parametrize("message", hostile_headers())
def test_a_hostile_header_is_refused_even_where_hashes_agree(folder: Path, message: str) -> None:
    path = folder / FIRST
    rewrite(path, hostile_headers()[message](*split(path)))
    refused(folder, message.strip(), "sizes")


def refusal_of(action: Callable[[], object]) -> str:
    """The one line that says no, or nothing."""
    with suppress(UmbelError):
        action()
        return ""
    with pytest.raises(UmbelError) as caught:
        action()
    assert str(caught.value).isprintable()
    return str(caught.value)


class Sample:
    """One checkpoint for many mutations; every mutation is undone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(save(tmp_path_factory.mktemp("mutations"), make_state()))


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_of_any_file_is_refused_by_one_line(sample: Sample, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(sample.content)))
    raw = sample.content[name]
    at = data.draw(st.integers(0, len(raw) - 1))
    mutated = data.draw(
        st.one_of(
            st.integers(1, 255).map(lambda bits: raw[:at] + bytes([raw[at] ^ bits]) + raw[at + 1 :]),
            st.just(raw[:at]),
            st.binary(min_size=1, max_size=20).map(lambda extra: raw[:at] + extra + raw[at:]),
            st.integers(1, 100).map(lambda n: raw[:at] + raw[at + n :]),
        )
    )
    path = sample.folder / name
    path.write_bytes(mutated)
    refusal = refusal_of(lambda: verify(sample.folder))
    path.write_bytes(raw)
    assert mutated == raw or name in refusal, "a changed file was taken for whole"


@settings(max_examples=300)
@given(raw=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda t: join(t.encode(), b""))))
def test_the_header_parser_says_no_to_noise_in_its_own_words(raw: bytes) -> None:
    refusal = refusal_of(lambda: parse_header(raw, len(raw) + 8, "noise"))
    assert refusal or raw.strip().startswith(b"{")


def test_claims_of_gigantic_tensors_allocate_nothing(folder: Path) -> None:
    change(folder, lambda m: m["parameters"].update({"wte.weight": [1 << 60]}))
    refused(folder, "are not saved")


def test_one_digit_of_a_learning_rate_is_found(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"lr":0.001', '"lr":0.002'))
    refused(folder, r"its content is not what was saved \(checksum differs\)", "sizes")
