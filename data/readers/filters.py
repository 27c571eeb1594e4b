"""Which documents of a source are kept: by length, by what they contain, by the values of columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from configs.schema import Filters


class DocumentFilter:
    """`Filters`, compiled."""

    def __init__(self, filters: Filters) -> None:
        self._min, self._max = filters.min_chars, filters.max_chars
        self._matches = re.compile(filters.matches) if filters.matches else None
        self._excludes = re.compile(filters.excludes) if filters.excludes else None
        self._columns = tuple(filters.columns.items())

    def keeps(self, text: str, record: Mapping[str, Any]) -> bool:
        """Whether a document stays. ``record`` has every column that the filters name."""
        return (
            len(text) >= self._min
            and (self._max is None or len(text) <= self._max)
            and all(_accepts(accepted, record[column]) for column, accepted in self._columns)
            and (self._matches is None or self._matches.search(text) is not None)
            and (self._excludes is None or self._excludes.search(text) is None)
        )


def _accepts(accepted: list[Any], value: Any) -> bool:
    """True is no 1: Python finds them equal."""
    return any(each == value and isinstance(each, bool) == isinstance(value, bool) for each in accepted)
