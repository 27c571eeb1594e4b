from __future__ import annotations

import pytest

from base.errors import UmbelError
from configs.compose import compose, differing_keys
from launch.overrides import apply

FROZEN = ["experiment=demo", "parallelism=zero2", "parallelism.processes=2", "optimizer.lr=1e-3"]


def test_a_preset_replaces_its_section_and_nothing_else() -> None:
    frozen = compose(FROZEN)
    changed = apply(frozen, ["parallelism=zero3", "parallelism.processes=1"])
    assert (changed.parallelism.zero_stage, changed.parallelism.processes) == (3, 1)
    assert differing_keys(frozen, changed) == []
    assert (frozen.parallelism.zero_stage, frozen.parallelism.processes) == (2, 2)


def test_keys_win_over_presets_in_any_order() -> None:
    changed = apply(compose(FROZEN), ["parallelism.processes=4", "parallelism=zero3"])
    assert changed.parallelism.processes == 4


def test_values_are_read_as_hydra_reads_them() -> None:
    changed = apply(
        compose(FROZEN), ["optimizer.betas=[0.8,0.9]", "optimizer.lr=2e-5", "data.cache_dir=null"]
    )
    assert changed.optimizer.betas == [0.8, 0.9]
    assert changed.optimizer.lr == 2e-5
    assert changed.data.cache_dir is None


def test_nothing_to_change() -> None:
    frozen = compose(FROZEN)
    assert apply(frozen, []) == frozen


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.stepz=5", "schedule.stepz: no such key; did you mean 'steps'"),
        ("schedule.steps=many", "schedule.steps: must be a whole number"),
        ("parallelism=zero7", "no preset 'zero7'"),
        ("experiment=demo", "makes a new run"),
        ("steps", "'steps': is not an override"),
        ("optimizer.betas=[0.9", "cannot be read"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(UmbelError, match=message):
        apply(compose(FROZEN), [override])
