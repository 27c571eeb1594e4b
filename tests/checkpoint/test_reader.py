from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UmbelError
from checkpoint import openfiles
from checkpoint import reader as readers
from checkpoint.format import Damaged, Foreign
from checkpoint.manifest import digest
from checkpoint.reader import StateReader, latest
from checkpoint.writer import Fragment
from support.portable_state import State, make_state, save


def flip(path: Path, position: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def deal(state: State, world_size: int, data: st.DataObject) -> list[list[Fragment]]:
    """Cut every tensor at random places and deal the ranges to random ranks; some may get nothing."""
    shares: list[list[Fragment]] = [[] for _ in range(world_size)]
    for (name, kind), values in state.flat.items():
        cuts = sorted({0, values.size, *data.draw(st.lists(st.integers(0, values.size), max_size=4))})
        for start, stop in pairwise(cuts):
            rank = data.draw(st.integers(0, world_size - 1))
            shares[rank].append(Fragment(name, kind, start, values[start:stop], "F32", (stop - start,)))
    return shares


@settings(max_examples=50)
@given(shapes=st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=5), data=st.data())
def test_any_shapes_by_any_split_read_back_in_any_slice(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], data: st.DataObject
) -> None:
    state = make_state(shapes={f"p{i}": shape for i, shape in enumerate(shapes)})
    state = state._replace(frozen={}, buffers={}, groups=[list(state.shapes)])
    world_size = data.draw(st.integers(1, 5))
    shares = deal(state, world_size, data)
    folder = save(
        tmp_path_factory.mktemp("any"), state, world_size=world_size, share=lambda _, rank, __: shares[rank]
    )
    with StateReader(folder) as reader:
        for (name, kind), values in state.flat.items():
            if not values.size:
                continue
            start, stop = sorted(data.draw(st.tuples(*[st.integers(0, values.size)] * 2)))
            got = reader.read(name, kind, start, stop)
            assert got.tobytes() == values[start:stop].tobytes()
            assert reader.read(name, kind).tobytes() == values.tobytes()
            assert reader.shape(name) == tuple(state.shapes[name])


def test_whole_tensors_keep_dtype_and_shape(checkpoints: Path) -> None:
    state = make_state()
    with StateReader(save(checkpoints, state)) as reader:
        assert reader.names("frozen") == ["base.bias", "base.weight"]
        assert reader.names("buffer") == ["position_ids", "rotary.inv_freq"]
        assert reader.names("master") == sorted(state.shapes)
        assert reader.kinds("scale") == ["exp_avg", "exp_avg_sq", "master"]
        assert reader.dtype("base.weight", "frozen") == "BF16"
        assert reader.dtype("position_ids", "buffer") == "I64"
        assert reader.shape("base.weight") == (4, 3)
        assert reader.shape("position_ids") == (1, 4)
        assert reader.read("base.weight", "frozen").tobytes() == state.frozen["base.weight"].tobytes()
        assert reader.read("position_ids", "buffer", 1, 3).view(np.int64).tolist() == [1, 2]


def test_a_read_fills_memory_that_is_already_there(checkpoints: Path) -> None:
    state = make_state()
    out = np.zeros(6, np.float32)
    with StateReader(save(checkpoints, state, world_size=3)) as reader:
        reader.read("wte.weight", "exp_avg", 5, 11, out=out.view(np.uint8))
        with pytest.raises(ValueError, match="bytes to fill"):
            reader.read("wte.weight", "exp_avg", 5, 12, out=out.view(np.uint8))
    assert (out == state.flat["wte.weight", "exp_avg"][5:11]).all()


def test_a_read_touches_only_its_bytes(checkpoints: Path) -> None:
    io = Path("/proc/self/io")
    if not io.exists():
        pytest.skip("this kernel does not count reads")

    def bytes_read() -> int:
        return int(io.read_text().split()[1])

    state = make_state(shapes={"big": [1 << 20]})
    with StateReader(save(checkpoints, state, world_size=4)) as reader:
        reader.read("big", "master", 0, 1 << 20)
        counter = bytes_read()
        own = bytes_read() - counter
        counter = bytes_read()
        reader.read("big", "master", (1 << 18) - 10, (1 << 18) + 10)
        assert bytes_read() - counter - own == pytest.approx(80, abs=16)


def test_threads_may_share_a_reader(checkpoints: Path) -> None:
    state = make_state(shapes={f"p{i}": [1000] for i in range(20)})
    state = state._replace(groups=[list(state.shapes)])
    with StateReader(save(checkpoints, state, world_size=5)) as reader, ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda key: (key, reader.read(*key)), [*state.flat] * 5)
        assert all(got.tobytes() == state.flat[key].tobytes() for key, got in read)


@pytest.mark.parametrize(
    ("parameter", "kind", "start", "stop"),
    [
        ("nobody", "master", 0, 1),
        ("scale", "frozen", 0, 1),
        ("scale", "master", 0, 2),
        ("scale", "master", -1, 1),
    ],
)
def test_what_is_not_there_is_said(
    checkpoints: Path, parameter: str, kind: str, start: int, stop: int
) -> None:
    with StateReader(save(checkpoints, make_state())) as reader, pytest.raises(UmbelError, match="no "):
        reader.read(parameter, kind, start, stop)


def test_a_file_cut_short_under_the_reader_is_an_error_and_no_crash(checkpoints: Path) -> None:
    folder = save(checkpoints, make_state(), world_size=1)
    with StateReader(folder) as reader:
        reader.read("wte.weight", "master", 0, 1)
        path = folder / "state-00001-of-00001.safetensors"
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(Damaged, match="ends too early"):
            reader.read("wte.weight", "master")


def test_latest_of_nothing_is_none(checkpoints: Path) -> None:
    assert latest(checkpoints, verify="full") is None
    checkpoints.mkdir()
    assert latest(checkpoints, verify="full") is None


def test_latest_passes_a_damaged_one_by_and_says_which_file_and_why(checkpoints: Path) -> None:
    good = save(checkpoints, make_state(), step=9)
    bad = save(checkpoints, make_state(), step=10)
    file = bad / "state-00002-of-00002.safetensors"
    flip(file)
    said: list[str] = []
    assert latest(checkpoints, verify="full", warn=said.append) == good
    (line,) = said
    assert str(file) in line
    assert "sha256 differs" in line
    assert latest(checkpoints, verify="sizes", warn=said.append) == bad
    with pytest.warns(UserWarning, match="passed by"):
        assert latest(checkpoints, verify="full") == good


def test_latest_counts_in_numbers_not_in_letters(checkpoints: Path) -> None:
    save(checkpoints, make_state(), step=99_999_999)
    newest = save(checkpoints, make_state(), step=100_000_000)
    assert latest(checkpoints, verify="sizes") == newest


def test_another_runs_checkpoint_is_refused_not_passed_by(checkpoints: Path) -> None:
    save(checkpoints, make_state(), step=1)
    newest = save(checkpoints, make_state(), step=2, run_id="other", run_name="theirs")
    with pytest.raises(Foreign, match=r"belongs to run 'theirs' \(other\), not to run-1"):
        latest(checkpoints, verify="full", run_id="run-1")
    with pytest.raises(Foreign):
        StateReader(newest, run_id="run-1")
    assert latest(checkpoints, verify="full", run_id="other") == newest


def test_a_newer_format_is_refused_not_passed_by(checkpoints: Path) -> None:
    path = save(checkpoints, make_state()) / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format_version": 2, "boxes": "yes"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(Foreign, match="format version 2, this Umbel reads up to 1; install a newer Umbel"):
        latest(checkpoints, verify="sizes")


def test_a_thousand_files_need_no_thousand_open_ones(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openfiles, "MAX_OPEN", 3)
    state = make_state(shapes={f"p{i}": [40] for i in range(4)})
    state = state._replace(groups=[list(state.shapes)])
    folder = save(checkpoints, state, world_size=20)
    before = len(os.listdir("/proc/self/fd"))
    with StateReader(folder) as reader, ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda key: (key, reader.read(*key)), [*state.flat] * 3)
        assert all(got.tobytes() == state.flat[key].tobytes() for key, got in read)
        assert len(os.listdir("/proc/self/fd")) <= before + 1 + 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_running_out_of_descriptors_is_no_damage(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    folder = save(checkpoints, make_state())
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UmbelError, match="too many open files; raise ulimit -n") as caught:
        StateReader(folder)
    assert not isinstance(caught.value, Damaged)


def test_a_reader_tells_and_streams_all_there_is(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "STREAMED", 4)
    state = make_state()
    folder = save(checkpoints, state, world_size=3)
    with StateReader(folder) as reader:
        assert reader.digest == digest(folder)
        assert len(reader.tensors()) == 9 + 2 + 2
        assert reader.size("wte.weight", "master") == 21
        chunks = [chunk.tobytes() for chunk in reader.stream("wte.weight", "master")]
        assert [len(chunk) for chunk in chunks] == [16, 16, 16, 16, 16, 4]
        assert b"".join(chunks) == state.flat["wte.weight", "master"].tobytes()


def test_frozen_weights_are_read_in_any_slice(checkpoints: Path) -> None:
    state = make_state()
    flat = state.frozen["base.weight"].reshape(-1)
    with StateReader(save(checkpoints, state, world_size=5)) as reader:
        for start in range(13):
            for stop in range(start, 13):
                got = reader.read("base.weight", "frozen", start, stop)
                assert got.tobytes() == flat[start:stop].tobytes()


def test_a_frozen_weight_of_no_elements_is_stored_nowhere(checkpoints: Path) -> None:
    state = make_state()
    state.frozen["nothing"] = np.zeros((0, 3), np.uint16)
    with StateReader(save(checkpoints, state)) as reader:
        assert reader.shape("nothing") == (0, 3)
        assert reader.kinds("nothing") == []


def test_latest_passes_one_with_a_nan_by_if_asked_to(checkpoints: Path) -> None:
    state = make_state()._replace(frozen={})
    good = save(checkpoints, state, step=1)
    state.flat["scale", "master"][:] = np.nan
    bad = save(checkpoints, state, step=2)
    said: list[str] = []
    assert latest(checkpoints, verify="full") == bad
    assert latest(checkpoints, verify="finite", warn=said.append) == good
    assert "NaN" in said[0]
