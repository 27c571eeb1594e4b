"""A run as plain data: nested mappings, or one flat mapping of dotted keys."""

from __future__ import annotations

import dataclasses
from typing import Any

from configs.schema import RunConfig


def to_dict(config: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
