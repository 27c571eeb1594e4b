from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from checkpoint import retention
from checkpoint.format import Foreign, step_name
from checkpoint.hold import held
from checkpoint.reader import StateReader, latest
from checkpoint.retention import Retention, prune, staying
from support.portable_state import make_state, save

STEPS = st.sets(st.integers(0, 40), min_size=1, max_size=15)
SCORES = st.floats(0, 4, width=16) | st.just(math.nan) | st.just(math.inf)


def save_at(checkpoints: Path, *steps: int) -> list[Path]:
    return [save(checkpoints, make_state(), step=step) for step in steps]


@given(
    there=STEPS,
    damaged=st.sets(st.integers(0, 40)),
    keep_last=st.integers(1, 6),
    keep_every=st.none() | st.integers(1, 12),
    keep_best=st.integers(0, 5),
    scores=st.dictionaries(st.integers(0, 40), SCORES),
)
def test_what_stays_is_what_was_asked_for_and_no_more(
    there: set[int],
    damaged: set[int],
    keep_last: int,
    keep_every: int | None,
    keep_best: int,
    scores: dict[int, float],
) -> None:
    keep = Retention(keep_last=keep_last, keep_every=keep_every, keep_best=keep_best, scores=scores)
    valid = sorted(there - damaged)
    stay = staying(there, keep, lambda step: step not in damaged)
    assert max(there) in stay <= there
    assert set(valid[-keep_last:]) <= stay
    assert {step for step in there if keep_every and step % keep_every == 0} <= stay
    ranked = sorted((scores[step], -step) for step in valid if math.isfinite(scores.get(step, math.nan)))
    best = {-step for _, step in ranked[:keep_best]}
    assert best <= stay
    if len(valid) < keep_last:
        assert stay == there
    else:
        last = {step for step in there if step >= valid[-keep_last]}
        assert all(step in last | best or (keep_every and step % keep_every == 0) for step in stay)


def test_of_two_equally_good_ones_the_newer_stays() -> None:
    keep = Retention(keep_last=1, keep_best=1, scores={10: 2.5, 20: 2.5, 30: 3.0, 50: 1.0})
    assert staying([10, 20, 30, 40], keep) == {20, 40}


@given(there=STEPS, keep_last=st.integers(1, 4))
def test_no_more_is_looked_into_than_the_answer_needs(there: set[int], keep_last: int) -> None:
    asked: list[int] = []
    staying(there, Retention(keep_last=keep_last), lambda step: not asked.append(step))  # type: ignore[func-returns-value]
    assert asked == sorted(there, reverse=True)[:keep_last]


@pytest.mark.parametrize("settings", [{"keep_last": 0}, {"keep_every": 0}, {"keep_best": -1}])
def test_keeping_too_few_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UmbelError, match=r"keep_\w+: must be \d or more"):
        Retention(**settings)  # type: ignore[arg-type]


def test_the_newest_the_marked_and_the_best_stay(checkpoints: Path) -> None:
    save_at(checkpoints, 1, 2, 3, 4, 5, 6)
    keep = Retention(keep_last=1, keep_every=4, keep_best=1, scores={1: 3.0, 2: 2.0, 3: 2.5})
    assert prune(checkpoints, keep) == [checkpoints / step_name(step) for step in (1, 3, 5)]
    assert sorted(os.listdir(checkpoints)) == [step_name(step) for step in (2, 4, 6)]
    assert prune(checkpoints, keep) == []


def test_a_damaged_one_does_not_count_and_the_only_valid_one_stays(checkpoints: Path) -> None:
    folders = save_at(checkpoints, 1, 2, 3)
    for folder in folders[1:]:
        (folder / "state-00001-of-00002.safetensors").write_bytes(b"cut")
    keep = Retention(keep_last=1, keep_best=1, scores={2: 0.5})
    assert prune(checkpoints, keep) == []
    assert latest(checkpoints, verify="full", warn=lambda _: None) == folders[0]


def test_by_full_verification_a_flipped_byte_counts_as_damage(checkpoints: Path) -> None:
    old, new = save_at(checkpoints, 1, 2)
    path = new / "state-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xee")
    assert prune(checkpoints, Retention(keep_last=1), mode="full") == []
    assert prune(checkpoints, Retention(keep_last=1), mode="sizes") == [old]


def test_nothing_goes_while_a_newer_format_is_there(checkpoints: Path) -> None:
    path = save_at(checkpoints, 1, 2)[1] / "manifest.json"
    path.write_text(path.read_text().replace('"format_version":1', '"format_version":9'))
    with pytest.raises(Foreign):
        prune(checkpoints, Retention(keep_last=1))
    assert sorted(os.listdir(checkpoints)) == ["step-00000001", "step-00000002"]


def test_what_somebody_holds_goes_when_it_is_let_go(checkpoints: Path) -> None:
    first, second, _ = save_at(checkpoints, 1, 2, 3)
    keep = Retention(keep_last=1)
    with held(first), StateReader(second) as reader:
        assert prune(checkpoints, keep) == []
        assert reader.read("scale", "master").nbytes == 4
    assert prune(checkpoints, keep) == [first, second]


def test_each_is_verified_once_and_again_when_it_changes(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    verify = retention.verify
    monkeypatch.setattr(
        retention, "verify", lambda folder, mode: (looked.append(folder.name), verify(folder, mode))
    )
    folders = save_at(checkpoints, 1, 2)
    prune(checkpoints, Retention(keep_last=3))
    save_at(checkpoints, 3)
    prune(checkpoints, Retention(keep_last=3))
    assert sorted(looked) == [step_name(1), step_name(2), step_name(3)]
    (folders[1] / "state-00001-of-00002.safetensors").write_bytes(b"cut")
    assert prune(checkpoints, Retention(keep_last=2)) == []
    assert looked[3:] == [step_name(2)]
    shutil.rmtree(folders[1])
    save_at(checkpoints, 2)
    assert prune(checkpoints, Retention(keep_last=2)) == [folders[0]]
