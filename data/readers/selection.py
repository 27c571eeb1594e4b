"""The columns that a source's reading and filters ask for, and what is said when one is not there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from base.errors import UmbelError
from configs.schema import Filters
from data.files import Reading
from data.readers.template import template_columns

Asker = Literal["field", "template", "filters"]
MESSAGES = "messages"
Record = dict[str, Any]
"""Column to value: one row of a file."""


@dataclass(frozen=True)
class Selection:
    """Columns that make the text, and those that filters look at."""

    text: tuple[str, ...]
    filters: tuple[str, ...]
    is_template: bool

    @staticmethod
    def of(reading: Reading, filters: Filters) -> Selection:
        is_template = reading.format == "text" and reading.template is not None
        column = MESSAGES if reading.format == "messages" else reading.field
        text = template_columns(reading.template or "") if is_template else (column,)
        return Selection(text, (*reading.columns, *filters.columns), is_template)

    @property
    def names(self) -> list[str]:
        """Every column once."""
        return list(dict.fromkeys((*self.text, *self.filters)))

    def check(self, where: str, existing: Collection[str]) -> None:
        """Refuse a file or record without one of the columns, or with one of them twice."""
        for name in self.text + self.filters:
            if name not in existing:
                raise missing_column(where, name, list(existing), self._asked(name))
            if isinstance(existing, list) and existing.count(name) > 1:
                raise UmbelError(f"has two columns '{name}'", where=where, fix="rename one of them")

    def _asked(self, name: str) -> Asker:
        if name not in self.text:
            return "filters"
        return "template" if self.is_template else "field"


def missing_column(where: str, column: str, existing: list[str], asked: Asker = "field") -> UmbelError:
    """The error for a column that is not there, with those that are; ``asked`` is who wants it."""
    if column == MESSAGES:
        fix = "set data.format=text"
    elif asked == "field":
        fix = (
            "name one of them as the source's field (in place of data.path: "
            "data=local 'data.sources.mine={path: …, field: …}')"
        )
    else:
        fix = "mend the source's " + ("template" if asked == "template" else "filters.columns")
    return UmbelError(
        f"has no column '{column}', only: {', '.join(existing) or 'none'}", where=where, fix=fix
    )
