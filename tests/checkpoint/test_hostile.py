"""Spoilt checkpoints: refused by one line, in bounded memory and time, and nothing outside is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from support.hostile import (
    FILES,
    SPOILERS,
    another_state,
    deep,
    doubled_file,
    forged_both,
    forged_header,
    joined,
    parts,
    read_manifest,
    rewrite,
    write_manifest,
    write_tail,
)
from support.portable_state import make_state, save

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "500"))
MIB = 1 << 20
REWRITING = (forged_header, forged_both, another_state)
"""They may leave another state, whole and sealed: bytes in another place, a dtype that all files tell."""
DOCS = Path(__file__).resolve().parents[2] / "docs" / "checkpoint-format.md"


class Reader:
    """A child process that reads what it is told to."""

    def __init__(self, sample: Path) -> None:
        script = Path(__file__).with_name("hostile_reader.py")
        command = [sys.executable, str(script), str(sample)]
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=sample.parent
        )

    def ask(self, folder: Path) -> dict[str, Any]:
        assert self.child.stdin and self.child.stdout
        print(folder, file=self.child.stdin, flush=True)
        line = self.child.stdout.readline()
        assert line, f"the reader died, code {self.child.wait()}"
        return json.loads(line)

    def close(self) -> None:
        self.child.communicate()


class Stage:
    """A good checkpoint, a place to spoil copies of it, and a folder outside that nobody may touch."""

    def __init__(self, root: Path) -> None:
        scaler = {"cur_scale": 65536.0, "cur_iter": 7, "last_overflow_iter": -1, "cur_hysteresis": 2}
        facts = {"tied": {"lm_head.weight": "wte.weight"}, "loss_scaler": scaler}
        self.sample = save(root / "sample", make_state(), **facts)
        self.folder = root / "spoilt" / self.sample.name
        self.outside = root / "outside"
        shutil.copytree(self.sample, self.outside)
        (self.outside / "secret").write_text("secret")
        self.bytes = {path.name: path.read_bytes() for path in self.sample.iterdir()}
        for path in self.outside.iterdir():
            os.utime(path, (1e9, 1.1e9))
        self.canary = self.look()
        self.reader = Reader(self.sample)
        self.right = self.reader.ask(self.sample)

    def look(self) -> list[tuple[Any, ...]]:
        """Time of last access among it: older than the last change, so that every reading shows."""
        found = sorted(self.outside.iterdir())
        return [
            (one.name, one.stat().st_atime_ns, one.stat().st_mtime_ns, one.stat().st_size) for one in found
        ]

    def fresh(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.sample, self.folder)
        return self.folder

    def read_at_most(self) -> int:
        """Bytes: what is larger than it was saved is not read, but for the manifest."""
        manifest = self.folder / "manifest.json"
        grown = manifest.lstat().st_size if manifest.is_file() else 0
        return grown + sum(map(len, self.bytes.values()))

    def is_spoilt(self) -> bool:
        names = set(os.listdir(self.folder))
        return names != set(self.bytes) or any(
            (self.folder / name).is_symlink()
            or not (self.folder / name).is_file()
            or (self.folder / name).stat().st_size != len(self.bytes[name])
            or (self.folder / name).read_bytes() != self.bytes[name]
            for name in names
        )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("hostile"))
    yield made
    made.reader.close()


def docs_reader() -> Callable[[Path, str, str], np.ndarray]:
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "numpy" in block
    ]
    space: dict[str, Any] = {"__name__": "reader"}
    exec(code, space)
    return space["read_tensor"]


def by_docs(folder: Path, key: str, dtype: str) -> str:
    """sha256 of a tensor's bytes as the docs' reader gives them."""
    values = docs_reader()(folder, *key.rpartition("|")[::2])
    if dtype == "BF16":
        values = (np.ascontiguousarray(values).view("<u4") >> 16).astype("<u2")
    return sha256(np.ascontiguousarray(values)).hexdigest()


def check_bounds(told: dict[str, Any], size: int) -> None:
    assert told["touched"] == []
    for refusal in (told["full"], told["finite"], told["reader"]):
        assert not refusal.startswith("CRASH"), refusal
    assert told["peak"] < 10 * size + 24 * MIB
    assert told["seconds"] < 20


def test_a_good_one_is_read_in_full_and_the_watch_sees_what_it_should(stage: Stage) -> None:
    told = stage.right
    check_bounds(told, 0)
    assert told["full"] == told["reader"] == ""
    assert told["read"]["wte.weight|master"] == sha256(make_state().flat["wte.weight", "master"]).hexdigest()
    (stage.outside / "secret").read_text()
    if stage.look() == stage.canary:
        pytest.skip("this file system does not note when a file is read")
    os.utime(stage.outside / "secret", (1e9, 1.1e9))


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_spoilt_is_refused_or_reads_exactly_right(stage: Stage, data: st.DataObject) -> None:
    spoil = data.draw(st.sampled_from(SPOILERS))
    folder = stage.fresh()
    spoil(data.draw, folder, stage.outside)
    told = stage.reader.ask(folder)
    event(f"{spoil.__name__} is {'refused' if told['full'] else 'read'}")
    check_bounds(told, stage.read_at_most())
    if not told["full"]:
        assert told["reader"] == "", "what verifies can be read"
        check_read(stage, folder, told["read"], is_rewritten=spoil in REWRITING)
    else:
        assert told["finite"], "what is refused by one mode is refused by the stricter one"
    assert not told["full"] or spoil is not another_state
    assert told["full"] or spoil is not doubled_file
    if spoil.__name__ in ("rot", "strange_files") and stage.is_spoilt():
        assert told["full"], "a change that nobody sealed is found"
    assert stage.look() == stage.canary


def check_read(stage: Stage, folder: Path, read: dict[str, str], *, is_rewritten: bool) -> None:
    """What was read is what was saved; or what stands there, where the state was changed and sealed."""
    if not is_rewritten:
        assert read == stage.right["read"]
        return
    manifest = read_manifest(folder)
    dtypes = {key: one["dtype"] for file in manifest["files"] for key, one in file["fragments"].items()}
    assert read.keys() == dtypes.keys()
    for key, digest in read.items():
        if not dtypes[key].startswith("F8"):
            assert by_docs(folder, key, dtypes[key]) == digest


def rewrite_first(folder: Path, raw: bytes) -> None:
    rewrite(folder / FILES[0], raw)


def deep_note(folder: Path) -> None:
    header, data = parts((folder / FILES[0]).read_bytes())
    header["__metadata__"]["DCP_SHARDING_INFO"] = '{"a":' * 200_000
    rewrite_first(folder, joined(header, data))


MANIFESTS = {
    "deep": b'"a":{' * 500_000,
    "deep and closed": b'"a":' + b"[" * 3000 + b"]" * 3000 + b"}",
    "wide lists": b'"a":[' + b"[]," * 3_000_000 + b"[]]}",
    "wide objects": b'"a":[' + b'{"":1},' * 1_500_000 + b"1]}",
    "wide numbers": b'"a":[' + b"999," * 3_000_000 + b"1]}",
    "many keys": b",".join(b'"k%07d":%d' % (i, i) for i in range(50_000)) + b"}",
    "a letter of four bytes": '"a":"\U0001f338'.encode() + b"x" * 8 * MIB + b'"}',
    "a number without end": b'"step":' + b"9" * 8 * MIB + b"}",
}
HEADERS = {
    "deep": joined(b'{"a":' * 1_000_000, b""),
    "wide": joined(b"{" + b'"a":[],' * 2_000_000 + b"}", b""),
    "of the largest size": joined(b"{" + b" " * (32 * MIB - 2) + b"}", b""),
    "beyond it": joined(b"{" + b" " * (32 * MIB) + b"}", b""),
    "that claims all memory": struct.pack("<Q", 1 << 63) + b"{}",
}
BOMBS: dict[str, Callable[[Path], object]] = {
    **{f"manifest: {name}": partial(write_tail, tail=b'",' + tail) for name, tail in MANIFESTS.items()},
    **{f"header: {name}": partial(rewrite_first, raw=raw) for name, raw in HEADERS.items()},
    "much honest text": partial(
        write_manifest, manifest={"parameters": {f"b.{i}": [1024] for i in range(20_000)}}
    ),
    "deep note": deep_note,
    "deep extra": lambda folder: write_manifest(folder, read_manifest(folder) | {"extra": deep(200)}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_no_more_than_its_size_allows(stage: Stage, name: str) -> None:
    folder = stage.fresh()
    BOMBS[name](folder)
    told = stage.reader.ask(folder)
    check_bounds(told, sum(path.stat().st_size for path in folder.iterdir()))
    assert told["full"] and told["reader"]


def test_a_claim_of_more_than_there_is_allocates_nothing(stage: Stage) -> None:
    """Manifest and header agree on 2 EiB in a file of a few bytes; it is the first tensor that is read."""
    folder = stage.fresh()
    path = folder / FILES[1]
    header, data = parts(path.read_bytes())
    count = 1 << 60
    manifest = read_manifest(folder)
    key = min(manifest["files"][1]["fragments"])
    manifest["parameters"][key.rpartition("|")[0]] = [count + 3]
    for told in (manifest["files"][1]["fragments"][key], header[key]):
        told["shape"] = [count]
    header[key]["data_offsets"] = [0, 2 * count]
    write_manifest(folder, manifest)
    rewrite(path, joined(header, data))
    answer = stage.reader.ask(folder)
    check_bounds(answer, 0)
    assert answer["full"] and answer["reader"]
