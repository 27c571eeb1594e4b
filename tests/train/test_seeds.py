"""Seeds: one for each purpose, the same on every machine."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from train.seeds import derive, seed_draws


@given(st.integers(), st.integers(0), st.integers(0))
def test_step_and_slot_each_matter(seed: int, step: int, slot: int) -> None:
    found = {
        derive(seed, "draws", step, slot),
        derive(seed, "draws", step, slot + 1),
        derive(seed, "draws", step + 1, slot),
        derive(seed + 1, "draws", step, slot),
    }
    assert len(found) == 4
    assert all(0 <= value < 1 << 63 for value in found)


def test_draws_follow_step_and_slot_alone() -> None:
    def draw(step: int, slot: int) -> list[float]:
        torch.rand(3)  # whatever was drawn before
        seed_draws(1234, step, slot)
        return torch.rand(4).tolist()

    assert draw(3, 8) == draw(3, 8)
    assert len({tuple(draw(step, slot)) for step in (1, 2) for slot in (0, 2, 4)}) == 6


def test_a_seed_is_a_constant_of_the_format() -> None:
    assert derive(1234, "draws", 1, 0) == 3006823900039085622
