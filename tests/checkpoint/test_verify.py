"""Hostile and damaged checkpoints: each is refused by one line, and nothing outside the folder is touched."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UmbelError
from base.files import sha256_file
from checkpoint.format import Damaged
from checkpoint.manifest import seal
from checkpoint.reader import StateReader
from checkpoint.safetensors import parse_header
from checkpoint.verify import share, verify
from checkpoint.writer import Fragment
from support.hostile import FILES, entry, joined, parts, read_manifest, rewrite, write_manifest
from support.portable_state import State, make_state, save, share_of

FIRST, SECOND = FILES


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


def change(folder: Path, edit: Callable[[dict], object]) -> None:
    """Edit the manifest as its writer could have: sealed again."""
    manifest = read_manifest(folder)
    edit(manifest)
    write_manifest(folder, manifest)


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
    "elements 12 to 15 of 'base.weight.f": lambda m: m["parameters"].update({"base.weight": [3, 5]}),
    "'base.weight.frozen' is saved with 12": lambda m: m["parameters"].update({"base.weight": [4, 2]}),
    "'base.weight.frozen' are saved twice": lambda m: m["files"][1]["fragments"]["base.weight|frozen"].update(
        offsets=[5]
    ),
    "'lost' is in no optimizer group and not saved": lambda m: m["parameters"].update({"lost": [1]}),
    "lacks 'tied'": lambda m: m.pop("tied"),
    "'tied' must be parameter names": lambda m: m.update(tied={"head": 1}),
    "tied: 'scale' is a parameter of its own": lambda m: m.update(tied={"scale": "wte.weight"}),
    "'head' is tied to 'nobody', which is no parameter": lambda m: m.update(tied={"head": "nobody"}),
    "may not name a tensor": lambda m: m.update(tied={"../head": "wte.weight"}),
    "'loss_scaler' must be null": lambda m: m.update(loss_scaler={}),
    "'loss_scaler' must be null,": lambda m: m.update(loss_scaler={"cur_scale": 0}),
    "'loss_scaler' must be null, ": lambda m: m.update(loss_scaler={"cur_scale": 2, "more": 1}),
    "'loss_scaler' must be null, or": lambda m: m.update(loss_scaler={"cur_scale": 2, "cur_iter": 1.5}),
    "'loss_scaler' must be null, or ": lambda m: m.update(loss_scaler={"cur_scale": True}),
    "'names' must be": lambda m: m["groups"][0].update(names=[1]),
    "'names' must be ": lambda m: m["groups"][0].update(names="scale"),
    "'software' must be text": lambda m: m.update(software={"\x1b[31m": "1"}),
    "is in two optimizer groups": lambda m: m["groups"][1]["names"].append(m["groups"][0]["names"][0]),
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
    refused(folder, message.rstrip(), "sizes")


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
        (b"[" * 3_000_000, r"more '\[' than any real file"),
        (b"[" + b"{}," * 1_000_000 + b"{}]", r"more '\{' than any real file"),
        (b"[" + b"1," * 1_000_000 + b"1]", "more ',' than any real file"),
        (seal({"\ud800": 1}), "lacks"),
    ],
    ids=range(16),
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
        return lambda header, data: joined({**header, "scale|master": header["scale|master"] | values}, data)

    return {
        "header length is impossible": lambda h, d: struct.pack("<Q", 1 << 62) + b"{}" + d,
        "no JSON object": lambda h, d: joined(b"[]", d),
        "is not a safetensors file": lambda h, d: b"\x02",
        "a key occurs twice": lambda h, d: joined(json.dumps(h).encode()[:-1] + b',"__metadata__":{}}', d),
        "that is not text by name": lambda h, d: joined({**h, "__metadata__": {"format": 1}}, d),
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
        "its header speaks of": lambda h, d: joined(h, d + b"\0" * 8),
        "its header speaks of ": lambda h, d: joined(h, d[:-8]),
        "says no offsets": lambda h, d: joined({**h, "__metadata__": {}}, d),
        "says no offsets ": lambda h, d: joined({**h, "__metadata__": {"DCP_SHARDING_INFO": "[]"}}, d),
        "is not JSON": lambda h, d: joined({**h, "__metadata__": {"DCP_SHARDING_INFO": "{"}}, d),
        "manifest differ at 'scale.master'": tensor(dtype="I32"),
    }  # fmt: skip


@pytest.mark.parametrize("message", hostile_headers())
def test_a_hostile_header_is_refused_even_where_hashes_agree(folder: Path, message: str) -> None:
    path = folder / FIRST
    rewrite(path, hostile_headers()[message](*parts(path.read_bytes())))
    refused(folder, message.strip(), "sizes")


def refusal_of(action: Callable[[], object]) -> str:
    """The one line that says no, or nothing."""
    try:
        action()
    except UmbelError as error:
        assert str(error).isprintable()
        return str(error)
    return ""


@settings(max_examples=300)
@given(raw=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda t: joined(t.encode(), b""))))
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


# NaN and infinity ---------------------------------------------------------------------------------------


NOT_FINITE = {
    "F32": [b"\x00\x00\xc0\x7f", b"\x01\x00\x80\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"],
    "BF16": [b"\xc0\x7f", b"\x80\xff", b"\x81\x7f"],
    "F16": [b"\x00\x7c", b"\x01\xfc"],
    "F64": [b"\x00" * 6 + b"\xf0\x7f", b"\x01" + b"\x00" * 5 + b"\xf0\xff"],
    "F8_E5M2": [b"\x7c", b"\xff"],
    "F8_E4M3": [b"\x7f", b"\xff"],
}
FINITE = {"F32": b"\xff\xff\x7f\x7f", "I64": b"\xff" * 8, "U8": b"\xff", "F8_E4M3": b"\x7e", "BOOL": b"\x01"}


def save_buffer(checkpoints: Path, dtype: str, *numbers: bytes) -> Path:
    """A checkpoint of two ranks with a buffer of these numbers, after a million of zeros."""
    zeros = bytes(len(numbers[0])) * 1_000_000

    def fragments(state: State, rank: int, world_size: int) -> list[Fragment]:
        data = zeros + b"".join(numbers)
        whole = Fragment("b", "buffer", 0, data, dtype, (len(data) // len(numbers[0]),))
        return [*share_of(state, rank, world_size), *([whole] if rank == 1 else [])]

    return save(checkpoints, make_state()._replace(frozen={}), share=fragments)


@pytest.mark.parametrize(("dtype", "number"), [(d, n) for d, numbers in NOT_FINITE.items() for n in numbers])
def test_what_is_not_finite_is_found_and_named(checkpoints: Path, dtype: str, number: bytes) -> None:
    folder = save_buffer(checkpoints, dtype, bytes(len(number)), number)
    verify(folder, "full")
    told = refused(folder, r"'b.buffer' holds NaN or infinity, first at element 1000001 of", "finite")
    assert SECOND in told


@pytest.mark.parametrize("dtype", FINITE)
def test_large_numbers_and_integers_are_finite(checkpoints: Path, dtype: str) -> None:
    verify(save_buffer(checkpoints, dtype, FINITE[dtype]), "finite")


def test_rot_is_told_before_the_nan_it_made(checkpoints: Path) -> None:
    path = save_buffer(checkpoints, "F32", b"\x00\x00\x80\x7f") / SECOND
    raw = path.read_bytes()
    path.write_bytes(raw[:-8] + b"\xff" * 8)
    refused(path.parent, "sha256 differs", "finite")


# Several who verify together ------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(0, 1000), max_size=20), world=st.integers(1, 6))
def test_ranks_share_the_files_evenly_and_each_is_read_once(sizes: list[int], world: int) -> None:
    files = [{"name": f"state-{index}", "size": size} for index, size in enumerate(sizes)]
    shares = [share(files, rank, world) for rank in range(world)]
    assert sorted(file["name"] for mine in shares for file in mine) == sorted(file["name"] for file in files)
    loads = [sum(file["size"] for file in mine) for mine in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_bytes_are_shared_not_files() -> None:
    files = [{"name": f"state-{index}", "size": size} for index, size in enumerate([8] + [1] * 8)]
    assert [len(share(files, rank, 2)) for rank in range(2)] == [1, 8]


def test_each_rank_hashes_its_part_and_checks_all_headers(folder: Path) -> None:
    found = [verify(folder, part=(rank, 3)) for rank in range(3)]
    assert [one.hashed > 0 for one in found] == [True, True, False]
    assert sum(one.hashed for one in found) == found[0].bytes == verify(folder).hashed
    (folder / SECOND).write_bytes(b"")
    for rank in range(3):
        with pytest.raises(Damaged, match="holds 0 bytes"):
            verify(folder, part=(rank, 3))


def test_a_flipped_byte_is_found_by_one_of_the_ranks(folder: Path) -> None:
    raw = bytearray((folder / SECOND).read_bytes())
    raw[-1] ^= 1
    (folder / SECOND).write_bytes(raw)
    refusals = [refusal_of(lambda rank=rank: verify(folder, part=(rank, 2))) for rank in range(2)]
    assert sorted(map(bool, refusals)) == [False, True]
    assert SECOND in "".join(refusals)


def test_what_was_found_is_told(folder: Path) -> None:
    told: list[int] = []
    found = verify(folder, tell=told.append)
    assert found.digest == sha256_file(folder / "manifest.json")
    assert (found.files, found.manifest["step"]) == (2, 100)
    assert sum(told) == found.hashed == found.bytes == sum((folder / name).stat().st_size for name in FILES)
    assert verify(folder, "sizes").hashed == 0
