"""A text made of columns: ``{title}: {body}``. Plain names only; ``{{`` and ``}}`` stand for braces."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from base.errors import UmbelError

Part = tuple[str, str | None]
"""Words, and the column that follows them (None: the template ends there)."""


def template_columns(template: str, where: str = "template") -> tuple[str, ...]:
    """The columns a template names, in order, each once.

    Raises:
        UmbelError: it is no template, or names no column; ``where`` is what the error points at.
    """
    names = tuple(dict.fromkeys(name for _, name in _parts(template, where) if name is not None))
    if not names:
        raise _fault("names no column", where)
    return names


def render(template: str, record: Mapping[str, Any]) -> str:
    """The text of a record that has all of the template's columns.

    null is nothing, numbers and dates are written plainly, true and false, lists and objects as JSON.

    Raises:
        ValueError: a value that is neither text nor any of these.
    """
    return "".join(
        words if name is None else words + _as_text(name, record[name])
        for words, name in _parts(template, "template")
    )


@lru_cache(maxsize=64)
def _parts(template: str, where: str) -> tuple[Part, ...]:
    """Not `str.format`: that would reach into attributes and items of what it is given."""
    parts = []
    try:
        for words, name, form, conversion in string.Formatter().parse(template):
            if name is not None and (not name or form or conversion or any(mark in name for mark in ".[]")):
                written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                raise _fault(f"names no plain column in {{{written}}}", where)
            parts.append((words, name))
    except ValueError as error:
        raise _fault(f"is no template ({error})", where) from error
    return tuple(parts)


def _fault(what: str, where: str) -> UmbelError:
    return UmbelError(what, where=where, fix="write columns as {title}, and a brace as {{ or }}")


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bytes):
        raise ValueError(f"'{name}' must be text, not bytes")
    if isinstance(value, bool | list | dict | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
