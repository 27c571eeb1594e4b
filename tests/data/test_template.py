from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UmbelError
from data.readers.template import render, template_columns


def test_columns_are_named_once_and_in_order() -> None:
    assert template_columns("{title}\n\n{body} – {title}") == ("title", "body")
    assert template_columns("{{brace}} {First Name}") == ("First Name",)


def test_a_text_is_made_of_columns() -> None:
    record = {"title": "Ö {x}", "body": None, "n": 3, "f": 0.5, "tags": ["ä", {"k": True}], "yes": True}
    assert render("{title}: {body}|{n}|{f}", record) == "Ö {x}: |3|0.5"
    assert render("{tags} {yes}", record) == '["ä", {"k": true}] true'
    assert render("{{{n}}}", record) == "{3}"


@settings(deadline=None)
@given(st.text(), st.dictionaries(st.sampled_from("abc"), st.text(), min_size=3))
def test_words_and_values_come_out_as_they_went_in(words: str, record: dict[str, str]) -> None:
    escaped = words.replace("{", "{{").replace("}", "}}")
    assert render(f"{escaped}{{a}}{escaped}{{b}}", record) == words + record["a"] + words + record["b"]


@pytest.mark.parametrize(
    "template", ["{a.b}", "{a[0]}", "{a:>9}", "{a!r}", "{}", "{a", "a}", "{a.__class__}", "{a:{b}}"]
)
def test_only_plain_names_are_columns(template: str) -> None:
    with pytest.raises(UmbelError) as caught:
        template_columns(template, "data.sources.x.template")
    assert str(caught.value).startswith("data.sources.x.template: ")
    assert "write columns as {title}" in str(caught.value)


def test_a_template_without_columns_is_a_mistake() -> None:
    with pytest.raises(UmbelError, match="names no column"):
        template_columns("title: {{title}}")


@pytest.mark.parametrize("value", [[1, None], {"b": 1, "a": [2]}, False])
def test_what_is_no_text_is_json(value: Any) -> None:
    assert json.loads(render("{a}", {"a": value})) == value


def test_bytes_are_no_text() -> None:
    with pytest.raises(ValueError, match="'a' must be text, not bytes"):
        render("{a}", {"a": b"x"})
