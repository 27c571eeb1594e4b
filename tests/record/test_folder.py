from __future__ import annotations

import os
from pathlib import Path

import pytest

from base.errors import UmbelError
from configs.compose import compose
from record.folder import RunFolder


def make_run(runs: Path, name: str) -> RunFolder:
    folder = RunFolder(runs / name).create()
    folder.run_yaml.write_text("run: {}\n")
    return folder


def test_of_config_lies_under_run_dir(tmp_path: Path) -> None:
    config = compose([f"run.dir={tmp_path}", "run.name=alpha"])
    assert RunFolder.of(config).path == tmp_path / "alpha"


def test_create_is_repeatable_and_shares_control_with_the_group(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "alpha").create().create()
    assert folder.checkpoints.is_dir()
    assert folder.outbox.is_dir()
    assert folder.control.stat().st_mode & 0o020


def test_find_by_name_and_by_path(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "alpha")
    assert RunFolder.find("alpha", tmp_path).path == folder.path
    assert RunFolder.find(folder.path).path == folder.path


def test_find_names_the_nearest_run(tmp_path: Path) -> None:
    make_run(tmp_path, "bloom-tiny")
    with pytest.raises(UmbelError, match="did you mean 'bloom-tiny'"):
        RunFolder.find("bloom-tyni", tmp_path)


def test_a_folder_without_run_yaml_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "stray").mkdir()
    with pytest.raises(UmbelError, match="no such run"):
        RunFolder.find("stray", tmp_path)
    assert RunFolder.all(tmp_path) == []


def test_unwritable_place_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UmbelError, match=r"cannot be written \(.*\); set run.dir") as caught:
        RunFolder(tmp_path / "file" / "alpha").create()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "alpha").create()
    folder.logs.chmod(0o500)
    with pytest.raises(UmbelError, match="Permission denied"):
        folder.create()
