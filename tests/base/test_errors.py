from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import RunFailed, UmbelError, did_you_mean


@pytest.mark.parametrize(
    ("where", "fix", "line"),
    [
        ("run.name", "pick another", "run.name: is taken; pick another"),
        (None, "pick another", "is taken; pick another"),
        ("run.name", None, "run.name: is taken"),
        (None, None, "is taken"),
    ],
)
def test_an_error_reads_as_one_line(where: str | None, fix: str | None, line: str) -> None:
    assert str(UmbelError("is taken", where=where, fix=fix)) == line


def test_bad_input_and_failed_work_have_their_own_exit_codes() -> None:
    assert UmbelError("bad").exit_code == 2
    assert RunFailed("NaN").exit_code == 1
    assert issubclass(RunFailed, UmbelError)


def test_the_nearest_word_is_offered_or_else_all_of_them() -> None:
    assert did_you_mean("sequence_lenght", ["sequence_length", "seed"]) == "did you mean 'sequence_length'?"
    assert did_you_mean("xyz", ["seed", "name"]) == "known: name, seed"
    assert did_you_mean("xyz", []) == "nothing is known here"


@given(st.sets(st.text("abcdefgh_", min_size=1), min_size=1), st.data())
def test_a_known_word_is_its_own_nearest(known: set[str], data: st.DataObject) -> None:
    word = data.draw(st.sampled_from(sorted(known)))
    assert did_you_mean(word, known) == f"did you mean '{word}'?"
