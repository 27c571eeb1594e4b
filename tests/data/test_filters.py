from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Filters
from data.readers.filters import DocumentFilter


def keeps(text: str, record: dict[str, Any] | None = None, **filters: Any) -> bool:
    return DocumentFilter(Filters(**filters)).keeps(text, record or {})


@settings(deadline=None)
@given(st.text(max_size=9), st.integers(0, 9), st.integers(0, 9))
def test_length_counts_characters(text: str, low: int, high: int) -> None:
    assert keeps(text, min_chars=low, max_chars=high) == (low <= len(text) <= high)


def test_expressions_are_searched_for_anywhere() -> None:
    assert keeps("one two", matches="tw.$")
    assert not keeps("one two", matches="^two")
    assert not keeps("one two", excludes="n")
    assert keeps("one two", matches="o", excludes="x")


def test_columns_accept_values() -> None:
    languages = {"lang": ["de", "fr"], "ok": [True]}
    assert keeps("x", {"lang": "de", "ok": True}, columns=languages)
    assert not keeps("x", {"lang": "en", "ok": True}, columns=languages)
    assert not keeps("x", {"lang": "de", "ok": None}, columns=languages)
    assert not keeps("x", {"lang": "de", "ok": 1}, columns=languages)
    assert keeps("x", {"n": 2.0}, columns={"n": [1, 2]})
    assert not keeps("x", {"n": True}, columns={"n": [1]})
    assert keeps("x", {"n": None}, columns={"n": [None]})
    assert keeps("x", {"tags": ["a"]}, columns={"tags": [["a"]]})
