from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from base.errors import UmbelError
from checkpoint import writer
from checkpoint.folders import staging_folder
from checkpoint.reader import StateReader
from checkpoint.verify import verify
from checkpoint.writer import commit, patience, write_share
from support.portable_state import SAVE_ID, State, facts_of, make_state, save, share_of
from support.small_disk import SmallDisk


def big_state() -> State:
    return make_state(shapes={"wte.weight": [300, 100]})


NewDisk = Callable[[str], SmallDisk]


def test_too_little_room_is_said_before_anything_is_written(
    new_disk: NewDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = new_disk("size=256k").path / "checkpoints"
    kept = [save(checkpoints, make_state(), step=step) for step in (8, 9, 10)]
    undone = save(checkpoints / "rolled-back-0001", make_state(), step=11)
    monkeypatch.setattr(writer, "write_fragments", lambda *_: pytest.fail("a file was begun"))
    with pytest.raises(UmbelError) as caught:
        save(checkpoints, big_state(), step=101, world_size=1)
    said = str(caught.value)
    assert re.search(r"the checkpoint needs 35\d\.\d KiB, 2\d\d\.\d KiB are free; free some space,", said)
    spare = "as rolled-back-0001 (5.4 KiB), step-00000008 (5.4 KiB), step-00000009 (5.4 KiB), or lower"
    assert f"free some space, {spare} checkpoint.keep_last;" in said
    assert "step-00000010" not in said, "the newest one must not be proposed"
    assert sorted(os.listdir(checkpoints)) == [undone.parent.name, *(folder.name for folder in kept)]
    for folder in kept:
        verify(folder)


def test_rank_0_looks_whether_there_is_room_for_all_ranks(new_disk: NewDisk) -> None:
    state, checkpoints = make_state(), new_disk("size=256k").path / "checkpoints"
    share = share_of(state, 0, 2)
    write_share(checkpoints, 1, SAVE_ID, 1, 2, share_of(state, 1, 2), state.parameters, 1 << 20)
    with pytest.raises(UmbelError, match=r"the disk is full: the checkpoint needs 1\.0 MiB"):
        write_share(checkpoints, 1, SAVE_ID, 0, 2, share, state.parameters, 1 << 20)
    # What the others have put there already is room that was there.
    (staging_folder(checkpoints, 1, SAVE_ID) / "state-big.safetensors").write_bytes(bytes(150 << 10))
    write_share(checkpoints, 1, SAVE_ID, 0, 2, share, state.parameters, 200 << 10)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_disk_that_fills_up_while_writing_loses_nothing(
    new_disk: NewDisk, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    checkpoints = new_disk("size=256k").path / "checkpoints"
    kept = [save(checkpoints, make_state(), step=step) for step in (99, 100)]
    monkeypatch.setattr(writer, "check_room", lambda *_: None)
    with pytest.raises(
        UmbelError, match=r"disk is full.* needs \d+\.\d KiB, .* as step-00000099 \(5.4 KiB\),"
    ):
        save(checkpoints, big_state(), step=101, world_size=world_size)
    writer.discard(checkpoints, 101, SAVE_ID)
    assert sorted(os.listdir(checkpoints)) == [folder.name for folder in kept]
    for folder in kept:
        verify(folder)
    save(checkpoints, make_state(), step=101)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_disk_that_is_full_at_any_point_of_a_save_loses_nothing(
    new_disk: NewDisk, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    checkpoints = new_disk("size=128k").path / "checkpoints"
    kept = save(checkpoints, make_state())
    monkeypatch.setattr(writer, "check_room", lambda *_: None)
    ballast, failed = checkpoints.parent / "ballast", 0
    for pages in range(20):
        ballast.write_bytes(bytes(os.statvfs(checkpoints).f_bavail * 4096 - pages * 4096))
        try:
            save(checkpoints, make_state(2), world_size=world_size)
        except UmbelError as error:
            failed += 1
            assert "the disk is full" in str(error)
            writer.discard(checkpoints, 100, SAVE_ID)
        else:
            break
        finally:
            ballast.unlink()
        assert os.listdir(checkpoints) == [kept.name]
        verify(kept)
    assert failed > 2 * world_size, "the files of each rank, its note, the manifest"
    with StateReader(kept) as reader:
        values = reader.read("h.0.bias", "master").view(np.float32)
    assert (values == make_state(2).flat["h.0.bias", "master"]).all()


@pytest.mark.parametrize("looks_first", [True, False])
def test_a_disk_without_inodes_loses_nothing(
    new_disk: NewDisk, monkeypatch: pytest.MonkeyPatch, looks_first: bool
) -> None:
    checkpoints = new_disk("size=1m,nr_inodes=30").path / "checkpoints"
    kept = save(checkpoints, make_state(), step=100)
    if not looks_first:
        monkeypatch.setattr(writer, "check_room", lambda *_: None)
    ballast, failed = checkpoints.parent / "ballast", 0
    ballast.mkdir()
    for number in range(os.statvfs(checkpoints).f_favail):
        (ballast / str(number)).touch()
    for file in ballast.iterdir():
        try:
            save(checkpoints, make_state(), step=101)
            break
        except UmbelError as error:
            failed += 1
            assert re.search(r"out of inodes: the checkpoint needs \d, \d are free; free some", str(error))
            writer.discard(checkpoints, 101, SAVE_ID)
        assert os.listdir(checkpoints) == [kept.name]
        verify(kept)
        file.unlink()
    assert failed > 4


def test_a_read_only_disk_loses_nothing_and_is_one_line(new_disk: NewDisk) -> None:
    disk = new_disk("size=1m")
    kept = save(disk.path / "checkpoints", make_state())
    disk.make_read_only()
    with pytest.raises(UmbelError, match=r"no checkpoint could be written \(Read-only file system\)"):
        save(disk.path / "checkpoints", make_state(), step=101)
    verify(kept)


def test_a_disk_that_turns_read_only_ends_the_waiting_for_other_ranks(new_disk: NewDisk) -> None:
    disk, state = new_disk("size=1m"), make_state()
    kept = save(disk.path / "checkpoints", state)
    where = disk.path / "checkpoints", 101, SAVE_ID
    write_share(*where, 0, 2, share_of(state, 0, 2), state.parameters)
    disk.make_read_only()
    with pytest.raises(UmbelError, match="Read-only file system"):
        commit(*where, 2, facts_of(state, 101, 2), wait=patience(30))
    verify(kept)


def test_a_limit_on_file_sizes_is_no_full_disk(checkpoints: Path) -> None:
    kept = save(checkpoints, make_state())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, limits[1]))
    try:
        with pytest.raises(UmbelError, match=r"needs 35\d\.\d KiB; raise the limit on file sizes"):
            save(checkpoints, big_state(), step=101, world_size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(checkpoints) == ["step-00000100"]
    verify(kept)


def test_no_room_for_the_manifest_loses_nothing(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    kept = save(checkpoints, make_state())
    monkeypatch.setattr(writer.manifests, "write", full)
    with pytest.raises(UmbelError, match="the disk is full"):
        save(checkpoints, make_state(), step=101)
    assert os.listdir(checkpoints) == ["step-00000100"]
    verify(kept)


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UmbelError, match="no checkpoint could be written") as caught:
        save(tmp_path / "file", make_state())
    assert "\n" not in str(caught.value)
