"""Other programs read our files as they are: torch.distributed.checkpoint, safetensors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import distributed
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from checkpoint.safetensors import Tensor, read_header, write_file
from checkpoint.writer import Fragment
from support.portable_state import State, even_cuts, make_state, save, share_of

ROOT = Path(__file__).resolve().parents[2]


def scattered(state: State, rank: int, world_size: int) -> list[Fragment]:
    """Rank 0 owns the first and the last third of everything, so it needs two files; rank 1 the rest."""
    fragments = [one for one in share_of(state, rank, 2) if one.kind == "buffer"]
    flat = state.flat | {(name, "frozen"): values.reshape(-1) for name, values in state.frozen.items()}
    for (name, kind), values in flat.items():
        for index, (start, stop) in enumerate(even_cuts(values.size, 3)):
            if (index == 1) == (rank == 1):
                data, dtype = values[start:stop], "BF16" if kind == "frozen" else "F32"
                fragments.append(Fragment(name, kind, start, data, dtype, data.shape))
    return fragments


@pytest.fixture(params=["even", "scattered"])
def folder(request: pytest.FixtureRequest, checkpoints: Path) -> Path:
    return save(checkpoints, make_state(), share=share_of if request.param == "even" else scattered)


class Slice(torch.Tensor):
    """Elements [start, start + n) of a flat tensor of ``numel``, as DCP asks a tensor for its place."""

    start: int
    whole: torch.Size

    def size(self, *_: Any) -> torch.Size:
        return self.whole

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        data = TensorWriteData(
            chunk=self.__create_chunk_list__()[0],
            properties=TensorProperties(dtype=self.dtype),
            size=self.whole,
        )
        index = MetadataIndex(fqn, torch.Size([self.start]))
        return [WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size([self.start]), torch.Size([self.numel()]))]

    def __get_tensor_shard__(self, _: MetadataIndex) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def slice_of(start: int, stop: int, numel: int, dtype: torch.dtype = torch.float32) -> Slice:
    tensor = torch.zeros(stop - start, dtype=dtype).as_subclass(Slice)
    tensor.start, tensor.whole = start, torch.Size([numel])
    return tensor


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_dcp_loads_every_tensor_whole(folder: Path) -> None:
    state = make_state()
    wanted: dict[str, Any] = {f"{n}|{k}": torch.zeros(v.size) for (n, k), v in state.flat.items()}
    wanted["base.weight|frozen"] = torch.zeros(12, dtype=torch.bfloat16)
    wanted["position_ids|buffer"] = torch.zeros(1, 4, dtype=torch.int64)
    dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    for (name, kind), values in state.flat.items():
        assert wanted[f"{name}|{kind}"].numpy().tobytes() == values.tobytes()
    frozen = wanted["base.weight|frozen"].view(torch.uint16).numpy().reshape(4, 3)
    np.testing.assert_array_equal(frozen, state.frozen["base.weight"])
    assert wanted["position_ids|buffer"].tolist() == [[0, 1, 2, 3]]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("start", "stop"), [(0, 4), (4, 17), (6, 7), (13, 21), (0, 21)])
def test_dcp_cuts_a_flat_tensor_anew(folder: Path, start: int, stop: int) -> None:
    wanted = {f"wte.weight|{kind}": slice_of(start, stop, 21) for kind in ("master", "exp_avg")}
    dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    for kind in ("master", "exp_avg"):
        got = wanted[f"wte.weight|{kind}"].as_subclass(torch.Tensor).numpy()
        assert got.tobytes() == make_state().flat["wte.weight", kind][start:stop].tobytes()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (4, 9), (7, 12)])
def test_dcp_cuts_a_frozen_weight_anew(folder: Path, start: int, stop: int) -> None:
    wanted = {"base.weight|frozen": slice_of(start, stop, 12, torch.bfloat16)}
    dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    got = wanted["base.weight|frozen"].as_subclass(torch.Tensor).view(torch.uint16).numpy()
    np.testing.assert_array_equal(got, make_state().frozen["base.weight"].reshape(-1)[start:stop])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("rank", "world_size"), [(0, 2), (1, 2), (1, 4), (3, 4)])
def test_dcp_loads_a_dtensor_of_another_world(folder: Path, rank: int, world_size: int) -> None:
    distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (world_size,))
        start, stop = even_cuts(21, world_size)[rank]
        wanted = {"wte.weight|master": DTensor.from_local(
            torch.zeros(stop - start), mesh, [Shard(0)], shape=torch.Size([21]), stride=(1,)
        )}  # fmt: skip
        dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        got = wanted["wte.weight|master"].to_local().numpy()
    finally:
        distributed.destroy_process_group()
    assert got.tobytes() == make_state().flat["wte.weight", "master"][start:stop].tobytes()


def test_the_safetensors_library_opens_every_file(folder: Path) -> None:
    state = make_state()
    found: dict[str, int] = {}
    for entry in json.loads((folder / "manifest.json").read_text())["files"]:
        with safe_open(folder / entry["name"], "pt") as file:
            assert set(file.keys()) == set(entry["fragments"])
            for key, fragment in entry["fragments"].items():
                tensor = file.get_tensor(key)
                assert list(tensor.shape) == fragment["shape"]
                assert tensor.data_ptr() % tensor.element_size() == 0
                name, _, kind = key.rpartition("|")
                if (name, kind) in state.flat:
                    start = fragment["offsets"][0]
                    expected = state.flat[name, kind][start : start + tensor.numel()]
                    assert tensor.numpy().tobytes() == expected.tobytes()
                found[key] = found.get(key, 0) + tensor.numel()
    assert found["wte.weight|exp_avg_sq"] == 21


def test_we_read_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"b": torch.arange(3), "a": torch.zeros(2, 3, dtype=torch.bfloat16), "empty": torch.zeros(0, 2)}
    save_file(tensors, tmp_path / "x.safetensors", {"key": "value"})
    with open(tmp_path / "x.safetensors", "rb") as file:
        header = read_header(file, "x")
    assert header.metadata == {"key": "value"}
    assert {key: (one.dtype, one.shape) for key, one in header.entries.items()} == {
        "b": ("I64", (3,)),
        "a": ("BF16", (2, 3)),
        "empty": ("F32", (0, 2)),
    }
    begin, end = header.entries["b"].begin, header.entries["b"].end
    assert np.frombuffer((tmp_path / "x.safetensors").read_bytes()[begin:end], np.int64).tolist() == [0, 1, 2]


def test_the_hash_is_that_of_the_file_and_data_starts_aligned(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data = bytes(range(256)) * 20_000
    size, sha256 = write_file(path, [Tensor("x", "U8", (len(data),), data)], {"odd": "."})
    raw = path.read_bytes()
    assert (size, sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert raw.endswith(data)
    assert (len(raw) - len(data)) % 8 == 0


def test_headers_of_every_length_are_read_back(tmp_path: Path) -> None:
    """Among them 640 bytes, whose length bytes are those of a pickle."""
    path, lengths = tmp_path / "x.safetensors", set()
    for padding in range(0, 1400, 8):
        write_file(path, [Tensor("x", "U8", (3,), b"abc")], {"padding": "." * padding})
        with open(path, "rb") as file:
            entry = read_header(file, "x").entries["x"]
        assert path.read_bytes()[entry.begin : entry.end] == b"abc"
        lengths.add(entry.begin - 8)
    assert {0x280, 0x380, 0x480, 0x580} <= lengths


def test_the_room_needs_neither_torch_nor_safetensors() -> None:
    code = (
        "import sys, checkpoint.writer, checkpoint.reader, checkpoint.retention, checkpoint.inspect;"
        "print(sorted({'torch', 'safetensors', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
