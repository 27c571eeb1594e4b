"""Sweeps: which runs one command line stands for."""

from __future__ import annotations

import pytest

from base.errors import UmbelError
from launch.multirun import expand


def test_every_combination_in_order_under_names_of_their_own() -> None:
    configs = expand(["optimizer.lr=1e-4,3e-4", "run.seed=range(1,4)", "run.name=a", "schedule.steps=200"])
    assert [config.run.name for config in configs] == [f"a-{number}" for number in range(6)]
    values = [(config.optimizer.lr, config.run.seed) for config in configs]
    assert values == [(lr, seed) for lr in (1e-4, 3e-4) for seed in (1, 2, 3)]
    assert {config.schedule.steps for config in configs} == {200}


def test_presets_and_quoted_values() -> None:
    assert [made.model.arch for made in expand(["model=bloom_tiny,llama_tiny"])] == ["bloom", "llama"]
    paths = [made.data.path for made in expand(["data.path='a b.jsonl','c,d.jsonl'"])]
    assert paths == ["a b.jsonl", "c,d.jsonl"]


def test_names_that_are_swept_stay() -> None:
    assert [made.run.name for made in expand(["run.name=x,y"])] == ["x", "y"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["optimizer.lr=1e-4"], "no value is swept"),
        ([], "no value is swept"),
        (["optimizer.betas=[0.9,0.95]"], "no value is swept"),
        (["optimizer.lr=interval(0,1)"], "cannot be listed"),
        (["model=glob(*)"], "cannot be listed"),
        (["run.seed=range(0,40)", "schedule.steps=range(500,540)"], "more than 1000 runs"),
        (["optimizer.lr=1e-4,fast"], "optimizer.lr: must be a number, not 'fast'"),
        (["optimizer.lr=1e-4,3e-4", "optimizer.lrr=1"], "did you mean 'lr'"),
        (["run.seed=1,2", "run.name=a-0,'b c'"], "cannot name a folder"),
    ],
)
def test_what_is_no_sweep_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(UmbelError, match=line):
        expand(overrides)
