from __future__ import annotations

import os
from pathlib import Path

import pytest

from base.errors import UmbelError
from checkpoint.format import Foreign
from checkpoint.reader import latest
from checkpoint.retention import prune
from support.portable_state import make_state, save


def test_the_newest_stay(checkpoints: Path) -> None:
    folders = [save(checkpoints, make_state(), step=step) for step in (1, 2, 3, 4)]
    assert sorted(prune(checkpoints, 2)) == folders[:2]
    assert sorted(os.listdir(checkpoints)) == ["step-00000003", "step-00000004"]
    assert prune(checkpoints, 2) == []


def test_a_damaged_one_does_not_count_and_the_only_valid_one_stays(checkpoints: Path) -> None:
    folders = [save(checkpoints, make_state(), step=step) for step in (1, 2, 3)]
    for folder in folders[1:]:
        (folder / "state-00001-of-00002.safetensors").write_bytes(b"cut")
    assert prune(checkpoints, 1) == []
    assert latest(checkpoints, verify="full", warn=lambda _: None) == folders[0]


def test_by_full_verification_a_flipped_byte_counts_as_damage(checkpoints: Path) -> None:
    old, new = (save(checkpoints, make_state(), step=step) for step in (1, 2))
    path = new / "state-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xee")
    assert prune(checkpoints, 1, mode="full") == []
    assert prune(checkpoints, 1, mode="sizes") == [old]


def test_keeping_none_is_refused(checkpoints: Path) -> None:
    save(checkpoints, make_state())
    with pytest.raises(UmbelError, match="at least one checkpoint must be kept"):
        prune(checkpoints, 0)
    assert os.listdir(checkpoints) == ["step-00000100"]


def test_nothing_goes_while_a_newer_format_is_there(checkpoints: Path) -> None:
    save(checkpoints, make_state(), step=1)
    path = save(checkpoints, make_state(), step=2) / "manifest.json"
    path.write_text(path.read_text().replace('"format_version":1', '"format_version":9'))
    with pytest.raises(Foreign):
        prune(checkpoints, 1)
    assert sorted(os.listdir(checkpoints)) == ["step-00000001", "step-00000002"]
