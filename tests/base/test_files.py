from __future__ import annotations

import hashlib
import json
import math
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.files import atomic_file, human_bytes, read_json, sha256_file, sha256_json, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_a_file_takes_its_name_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"


def test_a_block_that_raises_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(letter: str) -> None:
        for _ in range(30):
            write_text(path, letter * 5000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    text = path.read_text()
    assert text in {letter * 5000 for letter in "abcd"}
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import sys
from pathlib import Path
from base.files import atomic_file

path, turn = Path(sys.argv[1]), 0
while True:
    turn += 1
    with atomic_file(path) as file:
        for _ in range(64):
            file.write(b"%08d" % turn * 4096)
    print(turn, flush=True)
"""


def test_kill_9_at_random_moments_leaves_a_whole_file(tmp_path: Path) -> None:
    path, draw = tmp_path / "file", random.Random(0)
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        time.sleep(draw.random() * 0.02)
        writer.kill()
        told = [first, *map(int, writer.stdout.read().split())]
        writer.wait()
        content = path.read_bytes()
        assert len(content) == 8 * 4096 * 64
        assert content == content[:8] * (4096 * 64)
        # What was told as written is there; one more may have been renamed before it was told.
        assert told[-1] <= int(content[:8]) <= told[-1] + 1


@given(JSON)
def test_json_comes_back_and_equal_values_hash_alike(value: object) -> None:
    assert json.loads(json.dumps(value)) == value
    assert sha256_json(json.loads(json.dumps(value))) == sha256_json(value)


@given(st.dictionaries(st.text(), JSON, min_size=2))
def test_the_hash_of_json_knows_no_order(value: dict[str, object]) -> None:
    assert sha256_json(dict(reversed(value.items()))) == sha256_json(value)
    assert sha256_json(value | {"another key": 1.5}) != sha256_json(value | {"another key": 2.5})


def test_json_files_are_canonical_and_refuse_nan(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": 1, "a": ["ü", None]})
    assert path.read_text() == '{\n  "a": [\n    "\\u00fc",\n    null\n  ],\n  "b": 1\n}\n'
    assert read_json(path) == {"a": ["ü", None], "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, math.nan)
    assert read_json(path) == {"a": ["ü", None], "b": 1}


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_of_files_around_a_chunk(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(size).randbytes(size))
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 2**20, "1.5 GiB"), (3 * 2**50, "3072.0 TiB")],
)
def test_bytes_for_people(count: float, shown: str) -> None:
    assert human_bytes(count) == shown


@given(st.integers(0, 2**60))
def test_bytes_for_people_are_near_the_truth(count: int) -> None:
    number, unit = human_bytes(count).split()
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert abs(float(number) * factor - count) <= 0.05 * factor + 1
