from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.format import (
    check_name,
    is_state_file,
    split_key,
    state_file_name,
    step_name,
    step_of,
    tensor_key,
)


@given(st.integers(0, 10**15))
def test_a_step_has_one_name(step: int) -> None:
    assert step_of(step_name(step)) == step


@pytest.mark.parametrize(
    "name", ["step-1", "step-000000001", "step-0000000١", ".step-00000001.tmp", "step-00000001\n"]
)
def test_no_other_name_is_a_step(name: str) -> None:
    assert step_of(name) is None


@given(st.text(min_size=1, max_size=30).filter(lambda t: t.isprintable() and "/" not in t and "\\" not in t))
def test_a_key_comes_apart_as_it_was_put_together(parameter: str) -> None:
    assert split_key(tensor_key(parameter, "exp_avg_sq")) == (parameter, "exp_avg_sq")


def test_names_of_state_files() -> None:
    assert state_file_name(0, 2) == "state-00001-of-00002.safetensors"
    assert state_file_name(1, 2, part=2) == "state-00002-of-00002-part2.safetensors"
    assert is_state_file(state_file_name(99_999, 100_000, part=3))


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "a\nb", "a\0", "x" * 513])
def test_a_name_that_could_be_a_path_or_hide_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="may not name a tensor") as caught:
        check_name(name)
    assert str(caught.value).isprintable()
