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


def is_free_object(value: Any) -> bool:
    """Whatever a program wants to say, but not so deep that walking through it ends the program."""
    return isinstance(value, dict) and _is_shallow(value, MAX_DEPTH)


def _is_shallow(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(each, depth - 1) for each in inner)


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_texts_by_text(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value)) and all(map(is_text, value.values()))


def is_shape(value: Any) -> bool:
    return is_counts(value) and len(value) <= MAX_DIMENSIONS


def is_loss_scaler(value: Any) -> bool:
    """Of fp16 training: the scale, and what decides when it changes (deepspeed/runtime/fp16/loss_scaler.py).

    A scaler that never changes has ``cur_scale`` alone. ``last_overflow_iter`` may be -1: there was none.
    """
    if value is None:
        return True
    if not isinstance(value, dict) or "cur_scale" not in value:
        return False
    scale, counters = value["cur_scale"], value.keys() - {"cur_scale"}
    return (
        counters <= SCALER_COUNTERS
        and type(scale) in (int, float)
        and 0 < scale < 1 << 127
        and all(type(value[key]) is int and -1 <= value[key] < 1 << 63 for key in counters)
    )


def is_stage(value: Any) -> bool:
    return is_count(value) and value <= 3


SCALER_COUNTERS = {"cur_iter", "last_overflow_iter", "cur_hysteresis"}
MAX_DEPTH = 16
TEXT = (is_text, "a line of text")
COUNT = (is_count, "a whole number")
FREE = (is_free_object, f"an object at most {MAX_DEPTH} deep")

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
    "software": (is_texts_by_text, "text by name"),
    "topology": FREE,
    "tied": (is_texts_by_text, "parameter names by their other names"),
    "loss_scaler": (is_loss_scaler, "null, or cur_scale above 0 and whole numbers from -1 on"),
    "extra": FREE,
}
MANIFEST: Rules = {
    **FACTS,
    "format": (lambda value: value == FORMAT, f"'{FORMAT}'"),
    "format_version": (lambda value: is_count(value) and value == FORMAT_VERSION, str(FORMAT_VERSION)),
    "parameters": (is_object, "shapes by name"),
    "files": (is_list, "a list of files"),
}
GROUP: Rules = {
    "names": (is_names, "a list of parameter names"),
    "step": COUNT,
    "hyperparameters": FREE,
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
