"""What every field of a manifest must be. Unknown ones are refused, so that a mistyped one is never lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from checkpoint.format import DTYPE_BYTES, FORMAT, FORMAT_VERSION, MAX_DIMENSIONS, is_state_file
from checkpoint.strict import is_count, is_counts

Rules = Mapping[str, tuple[Callable[[Any], bool], str]]

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 4096 and value.isprintable()


def is_sha256(value: Any) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def is_shape(value: Any) -> bool:
    return is_counts(value) and len(value) <= MAX_DIMENSIONS


def is_stage(value: Any) -> bool:
    return is_count(value) and value <= 3


TEXT = (is_text, "a line of text")
COUNT = (is_count, "a whole number")

FACTS: Rules = {
    "run_id": TEXT,
    "run_name": TEXT,
    "step": COUNT,
    "sequences": COUNT,
    "tokens": COUNT,
    "parent": (lambda value: value is None or is_sha256(value), "null or a sha256"),
    "config_fingerprint": TEXT,
    "data_fingerprint": TEXT,
    "groups": (is_list, "a list of optimizer groups"),
    "software": (lambda value: is_object(value) and all(map(is_text, value.values())), "text by name"),
    "topology": (is_object, "an object"),
    "extra": (is_object, "an object"),
}
MANIFEST: Rules = {
    **FACTS,
    "format": (lambda value: value == FORMAT, f"'{FORMAT}'"),
    "format_version": (lambda value: is_count(value) and value == FORMAT_VERSION, str(FORMAT_VERSION)),
    "parameters": (is_object, "shapes by name"),
    "files": (is_list, "a list of files"),
}
GROUP: Rules = {
    "names": (is_texts, "a list of parameter names"),
    "step": COUNT,
    "hyperparameters": (is_object, "an object"),
}
TOPOLOGY: Rules = {
    "world_size": (lambda value: is_count(value) and value > 0, "a whole number above 0"),
    "zero_stage": (is_stage, "0, 1, 2 or 3"),
    "engine": TEXT,
}
FILE: Rules = {
    "name": (
        lambda value: isinstance(value, str) and is_state_file(value),
        "a name like state-*.safetensors",
    ),
    "size": COUNT,
    "sha256": (is_sha256, "a sha256"),
    "fragments": (is_object, "an object"),
}
FRAGMENT: Rules = {
    "dtype": (lambda value: isinstance(value, str) and value in DTYPE_BYTES, "a safetensors dtype"),
    "offsets": (is_shape, "a list of whole numbers"),
    "shape": (is_shape, "a list of whole numbers"),
}


def check_fields(value: Any, rules: Rules, label: str, *, more: bool = False) -> None:
    """Check one object of the manifest against its rules.

    Args:
        label: its place in the manifest, for the message.
        more: whether other fields may stand beside those of the rules.

    Raises:
        ValueError: which field is missing, unknown or wrong, and what it must be.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{label} must be an object")
    if missing := rules.keys() - value.keys():
        raise ValueError(f"{label} lacks '{min(missing)}'")
    if not more and (unknown := value.keys() - rules.keys()):
        raise ValueError(f"{label} has an unknown field {min(unknown)[:80]!r}")
    for key, (accepts, expected) in rules.items():
        if not accepts(value[key]):
            raise ValueError(f"{label}: '{key}' must be {expected}")
