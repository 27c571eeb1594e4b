"""docs/checkpoint-format.md is true: its reader reads, its example is what is written, its limits hold."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoint import format as limits
from checkpoint import schema, strict
from support.portable_state import SLICED, State, make_state, save

DOCS = Path(__file__).resolve().parents[2] / "docs" / "checkpoint-format.md"
TEXT = DOCS.read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


# The reader ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_reader_is_short_needs_numpy_alone_and_reads_everything(
    checkpoints: Path, world_size: int
) -> None:
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 60
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.M)) == {"json", "os", "struct", "sys", "numpy"}
    space: dict[str, Any] = {"__name__": "reader"}
    exec(code, space)
    read, state = space["read_tensor"], make_state()
    folder = save(checkpoints, state, world_size=world_size)
    for (name, kind), values in state.flat.items():
        assert read(folder, name, kind).tobytes() == values.tobytes()
        assert list(read(folder, name, kind).shape) == state.shapes[name]
    for name, bits in state.frozen.items():
        expected = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(read(folder, name, "frozen"), expected)
    for name, values in state.buffers.items():
        np.testing.assert_array_equal(read(folder, name, "buffer"), values)
    with pytest.raises(KeyError, match=r"scale\|frozen"):
        read(folder, "scale", "frozen")


def test_the_reader_is_a_program(checkpoints: Path, tmp_path: Path) -> None:
    script = tmp_path / "reader.py"
    script.write_text(blocks("python")[0])
    command = [sys.executable, str(script), str(save(checkpoints, make_state())), "position_ids", "buffer"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout == "[[0 1 2 3]]\n"


# The example -----------------------------------------------------------------------------------------------


@pytest.fixture
def example(checkpoints: Path) -> Path:
    values = np.array([0, 0, 0, 0.05, 0.05, 0.05], np.float32)
    flat = {("w", kind): values for kind in SLICED}
    return save(checkpoints, State({"w": [2, 3]}, flat, {}, {}, [["w"]]))


def test_the_bytes_of_the_example_are_those_that_are_written(example: Path) -> None:
    raw = (example / "state-00002-of-00002.safetensors").read_bytes()
    lines = re.findall(r"^([0-9a-f]{8})  ([0-9a-f ]{47,48}) +\|(.*)\|$", TEXT, re.M)
    assert len(lines) == 6
    for place, digits, letters in lines:
        shown = bytes.fromhex(digits)
        at = int(place, 16)
        assert raw[at : at + 16] == shown
        assert "".join(chr(byte) if 32 <= byte < 127 else "." for byte in shown) == letters
    assert int(lines[-1][0], 16) + len(bytes.fromhex(lines[-1][1])) == len(raw), "to the last byte"


def test_the_header_of_the_example_is_the_one_that_is_written(example: Path) -> None:
    raw = (example / "state-00002-of-00002.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert length == int(re.search(r"\*N\* = (\d+) bytes", TEXT)[1])  # type: ignore[index]
    assert json.loads(raw[8 : 8 + length]) == json.loads(blocks("json")[0])


def test_the_manifest_of_the_example_is_the_one_that_is_written(example: Path) -> None:
    written = json.loads((example / "manifest.json").read_text())
    assert json.loads(blocks("json")[1]) == written
    assert list(json.loads(blocks("json")[1])) == list(written)


# The rules -------------------------------------------------------------------------------------------------


def test_every_field_of_the_manifest_is_told() -> None:
    told = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", TEXT, re.M))))
    assert schema.MANIFEST.keys() <= told
    for rules in (schema.GROUP, schema.FILE, schema.FRAGMENT, schema.TOPOLOGY):
        assert all(f"`{key}`" in TEXT or f'"{key}"' in TEXT for key in rules)


def test_the_limits_are_those_of_the_code() -> None:
    text = " ".join(TEXT.split())
    for told in (
        f"length at most {limits.MAX_HEADER >> 20} MiB",
        f"UTF-8, at most {limits.MAX_MANIFEST >> 20} MiB",
        f"over {limits.MAX_NAME} characters",
        f"at most {limits.MAX_DIMENSIONS} of them",
        f"nested at most {schema.MAX_DEPTH} deep",
        "one `{{` for {} bytes of text, one `[` for {}, one `,` for {}".format(*strict.BYTES_APART.values()),
        f"the first {strict.ANY_NUMBER} of each",
    ):
        assert told in text
