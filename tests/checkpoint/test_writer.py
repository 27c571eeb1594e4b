from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from base.errors import RunFailed, UmbelError
from checkpoint import writer
from checkpoint.folders import staging_folder
from checkpoint.reader import StateReader, latest
from checkpoint.verify import verify
from checkpoint.writer import Fragment, clean, commit, write_share
from support.portable_state import SAVE_ID, State, facts_of, make_state, save, share_of


def cut(state: State, rank: int, world_size: int, *, drop: str = "", grow: int = 0) -> list[Fragment]:
    """The even share, less one fragment or with another rank's elements in it."""
    fragments = share_of(state, rank, world_size)
    if rank != 1:
        return fragments
    changed = []
    for one in fragments:
        if one.key == drop:
            continue
        if one.key == "wte.weight|exp_avg" and grow:
            start = one.start - grow
            data = state.flat["wte.weight", "exp_avg"][start : start + one.shape[0] + grow]
            one = one._replace(start=start, data=data, shape=data.shape)
        changed.append(one)
    return changed


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_a_save_is_one_folder_of_one_file_per_rank_and_the_manifest(
    checkpoints: Path, world_size: int
) -> None:
    folder = save(checkpoints, make_state(), world_size=world_size)
    expected = [f"state-{r:05d}-of-{world_size:05d}.safetensors" for r in range(1, world_size + 1)]
    assert sorted(os.listdir(folder)) == ["manifest.json", *expected]
    assert os.listdir(checkpoints) == ["step-00000100"]
    verify(folder)


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (save(tmp_path / name, make_state()) for name in "ab")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_a_gap_between_ranks_is_refused_and_leaves_nothing(checkpoints: Path) -> None:
    state = make_state()
    with pytest.raises(RunFailed, match=r"elements 11 to 21 of 'wte.weight\|exp_avg' are not saved"):
        save(checkpoints, state, share=lambda *a: cut(*a, drop="wte.weight|exp_avg"))
    assert os.listdir(checkpoints) == []


def test_an_overlap_between_ranks_is_refused(checkpoints: Path) -> None:
    with pytest.raises(RunFailed, match=r"elements 9 to 11 of 'wte.weight\|exp_avg' are saved twice"):
        save(checkpoints, make_state(), share=lambda *a: cut(*a, grow=2))


def test_frozen_weights_saved_by_two_ranks_are_refused(checkpoints: Path) -> None:
    def share(state: State, rank: int, world_size: int) -> list[Fragment]:
        extra = [one for one in share_of(state, 0, 1) if one.kind == "frozen"] if rank else []
        return share_of(state, rank, world_size) + extra

    with pytest.raises(RunFailed, match=r"'base.bias\|frozen' are saved twice"):
        save(checkpoints, make_state(), share=share)


def test_a_parameter_in_no_optimizer_group_must_be_frozen(checkpoints: Path) -> None:
    state = make_state()
    with pytest.raises(RunFailed, match="in no optimizer group"):
        save(checkpoints, state._replace(groups=state.groups[:1]))


def test_a_parameter_in_two_groups_is_refused(checkpoints: Path) -> None:
    state = make_state()
    with pytest.raises(RunFailed, match="in two optimizer groups"):
        save(checkpoints, state._replace(groups=[*state.groups, state.groups[0]]))


def test_a_missing_rank_is_named(checkpoints: Path) -> None:
    state = make_state()
    write_share(checkpoints, 7, SAVE_ID, 0, 2, share_of(state, 0, 2), state.parameters)
    with pytest.raises(RunFailed, match="rank 1 of 2 left no share"):
        commit(checkpoints, 7, SAVE_ID, 2, facts_of(state, 7, 2))
    assert os.listdir(checkpoints) == []


def test_the_share_of_another_world_size_never_slips_in(checkpoints: Path) -> None:
    state = make_state()
    write_share(checkpoints, 7, SAVE_ID, 2, 3, share_of(state, 2, 3), state.parameters)
    folder = save(checkpoints, state, step=7, world_size=2)
    verify(folder)
    assert len(os.listdir(folder)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topology": {"world_size": 3}}, "not of step 100 by 2 ranks"),
        ({"tokens": -1}, "'tokens' must be a whole number"),
        ({"tokens": True}, "'tokens' must be a whole number"),
        ({"parent": "abc"}, "'parent' must be null or a sha256"),
        ({"tokenz": 1}, "unknown field 'tokenz'"),
        ({"extra": {"scale": float("nan")}}, "not JSON compliant"),
        ({"extra": {"scale": np.float32(1)}}, "not JSON serializable"),
        ({"format_version": 2}, "'format_version' must be 1"),
    ],
)
def test_a_wrong_fact_is_refused(checkpoints: Path, change: dict, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        save(checkpoints, make_state(), **change)
    assert os.listdir(checkpoints) == []


@pytest.mark.parametrize(
    "bad",
    [
        Fragment("h.0.bias", "master", 3, bytes(12), "F32", (3,)),
        Fragment("h.0.bias", "master", -1, bytes(4), "F32", (1,)),
        Fragment("h.0.bias", "master", 0, bytes(20), "F32", (5, 1)),
        Fragment("h.0.bias", "master", 0, bytes(19), "F32", (5,)),
        Fragment("h.0.bias", "master", 0, np.zeros(10, np.float32)[::2], "F32", (5,)),
        Fragment("h.0.bias", "master", 0, bytes(20), "FLOAT", (5,)),
        Fragment("h.0.bias", "Master", 0, bytes(20), "F32", (5,)),
        Fragment("../bias", "buffer", 0, bytes(20), "F32", (5,)),
        Fragment("other", "master", 0, bytes(20), "F32", (5,)),
        Fragment("h.0.bias", "frozen", 1, bytes(20), "F32", (5,)),
        Fragment("rope", "buffer", 1, bytes(20), "F32", (5,)),
    ],
)
def test_a_fragment_outside_the_contract_is_refused_before_it_lands(checkpoints: Path, bad: Fragment) -> None:
    with pytest.raises(ValueError, match="'"):
        write_share(checkpoints, 1, SAVE_ID, 0, 1, [bad], {"h.0.bias": [5]})
    assert not checkpoints.exists() or os.listdir(checkpoints) == []


def test_data_may_be_given_by_a_function_when_it_is_needed(checkpoints: Path) -> None:
    state, alive, most = make_state(), 0, 0

    def lazily(one: Fragment) -> Fragment:
        def data() -> bytes:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return Told(one.data)

        return one._replace(data=data)

    class Told(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    folder = save(checkpoints, state, share=lambda *a: [lazily(one) for one in share_of(*a)])
    verify(folder)
    assert most <= 2, "only the tensor being written and the next one are on the host"


def test_a_function_may_give_the_same_memory_each_time(checkpoints: Path) -> None:
    memory, count = np.zeros(3 << 20, np.uint8), 0

    def fill() -> memoryview:
        nonlocal count
        count += 1
        memory[:] = count
        return memory.data

    shares = [Fragment(f"big.{n}", "buffer", 0, fill, "U8", memory.shape) for n in range(4)]
    state = make_state()
    verify(save(checkpoints, state, world_size=1, share=lambda *a: [*share_of(*a), *shares]))


def test_a_step_saved_again_replaces_the_old_one(checkpoints: Path) -> None:
    save(checkpoints, make_state(seed=1))
    folder = save(checkpoints, make_state(seed=2), world_size=3)
    assert os.listdir(checkpoints) == ["step-00000100"]
    with StateReader(folder) as reader:
        values = reader.read("h.0.bias", "master").view(np.float32)
    assert (values == make_state(seed=2).flat["h.0.bias", "master"]).all()


LEFTOVERS = (
    ".step-00000200.tmp",
    ".step-00000200.01234567.tmp",
    ".step-00000200.89abcdef.tmp",
    ".step-00000050.trash",
    "step-00000300",
    ".step-00000100.old",
)


def test_clean_removes_leftovers_and_nothing_else(checkpoints: Path) -> None:
    whole = save(checkpoints, make_state())
    damaged = save(checkpoints, make_state(), step=101)
    (damaged / "manifest.json").write_bytes(b"{}")
    for name in LEFTOVERS:
        (checkpoints / name).mkdir()
        (checkpoints / name / "state-00001-of-00001.safetensors").write_bytes(b"part")
    (checkpoints / "notes.txt").write_text("mine")
    (checkpoints / ".step-mine.tmp").mkdir()
    clean(checkpoints)
    left = sorted(os.listdir(checkpoints))
    assert left == [".step-mine.tmp", "notes.txt", "step-00000100", "step-00000101"]
    verify(whole)


def test_clean_brings_back_the_old_one_when_its_replacement_never_came(checkpoints: Path) -> None:
    folder = save(checkpoints, make_state())
    folder.rename(checkpoints / ".step-00000100.old")
    assert latest(checkpoints, verify="full") is None
    clean(checkpoints)
    assert latest(checkpoints, verify="full") == folder


def test_clean_does_not_need_the_folder(checkpoints: Path) -> None:
    clean(checkpoints)
    assert not checkpoints.exists()


def test_shares_of_another_save_of_the_step_are_not_taken(checkpoints: Path) -> None:
    state = make_state()
    write_share(checkpoints, 7, "00000000", 1, 2, share_of(make_state(1), 1, 2), state.parameters)
    write_share(checkpoints, 7, SAVE_ID, 0, 2, share_of(state, 0, 2), state.parameters)
    assert os.listdir(checkpoints) == [staging_folder(checkpoints, 7, SAVE_ID).name], "leftovers go first"
    with pytest.raises(RunFailed, match="rank 1 of 2 left no share"):
        commit(checkpoints, 7, SAVE_ID, 2, facts_of(state, 7, 2))


def test_a_rank_whose_save_was_given_up_says_so(checkpoints: Path) -> None:
    state = make_state()

    def gone() -> bytes:
        writer.discard(checkpoints, 7, SAVE_ID)
        return share[0].data  # type: ignore[return-value]

    share = share_of(state, 1, 2)
    with pytest.raises(RunFailed, match="gave this save up"):
        write_share(
            checkpoints, 7, SAVE_ID, 1, 2, [share[0]._replace(data=gone), *share[1:]], state.parameters
        )


def test_an_old_checkpoint_comes_back_when_its_replacement_cannot_take_its_place(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, rename = save(checkpoints, make_state(1)), os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).suffix == ".tmp":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UmbelError, match="Input/output error"):
        save(checkpoints, make_state(2))
    assert os.listdir(checkpoints) == [kept.name]
    verify(kept)
