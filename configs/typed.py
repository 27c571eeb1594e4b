"""Turn plain data into dataclasses, refusing unknown keys and wrong types by their full path."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from base.errors import UmbelError, did_you_mean

T = TypeVar("T")

_EXAMPLES = {int: "8", float: "0.1", bool: "true"}


def build(cls: type[T], value: Any, path: str = "") -> T:
    """Build dataclass ``cls`` from nested mappings.

    Raises:
        UmbelError: an unknown key (with the nearest known one), a missing key, or a value of another type.
    """
    if not isinstance(value, Mapping):
        raise UmbelError(f"must be a group of keys, not {_show(value)}", where=path or "config")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise UmbelError("no such key", where=_join(path, str(key)), fix=did_you_mean(str(key), fields))
    made = {}
    for name, field in fields.items():
        if name in value:
            made[name] = convert(hints[name], value[name], _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UmbelError(
                "must be given", where=_join(path, name), fix=f"set {_join(path, name)}=… on the command line"
            )
    return cls(**made)


def convert(hint: Any, value: Any, path: str) -> Any:
    """Check ``value`` against a type hint; an int passes for a float, nothing else is converted."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        return _literal(hint, value, path)
    if origin in (Union, types.UnionType):
        return _union(hint, value, path)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(hint, value, path)
        return [convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(hint, value, path)
        return {str(key): convert(arguments[1], item, _join(path, str(key))) for key, item in value.items()}
    return _scalar(hint, value, path)


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        # YAML reads 2e-5, without a dot, as text.
        try:
            return float(value)
        except ValueError:
            raise _wrong(hint, value, path) from None
    if isinstance(value, bool) != (hint is bool) or not isinstance(value, hint):
        raise _wrong(hint, value, path)
    return value


def _literal(hint: Any, value: Any, path: str) -> Any:
    for choice in get_args(hint):
        if value == choice and type(value) is type(choice):
            return value
    raise _wrong(hint, value, path)


def _union(hint: Any, value: Any, path: str) -> Any:
    members = get_args(hint)
    if value is None and type(None) in members:
        return None
    real = [member for member in members if member is not type(None)]
    if len(real) == 1:
        return convert(real[0], value, path)
    for member in real:
        with contextlib.suppress(UmbelError):
            return convert(member, value, path)
    raise _wrong(hint, value, path)


def _wrong(hint: Any, value: Any, path: str) -> UmbelError:
    fix = (
        f"for example {path}={_EXAMPLES[hint]}" if path[-1:] not in ("", "]") and hint in _EXAMPLES else None
    )
    if hint is str and isinstance(value, int | float) and path:
        fix = f"""quote it twice: {path}='"{value}"'"""
    return UmbelError(f"must be {_describe(hint)}, not {_show(value)}", where=path, fix=fix)


def _describe(hint: Any) -> str:
    """What a value of this type is called in an error."""
    origin = get_origin(hint)
    if origin is Literal:
        choices = ", ".join(str(choice) for choice in get_args(hint))
        return f"one of {choices}" if len(get_args(hint)) > 1 else choices
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in get_args(hint) if member is not type(None))
    if origin is list:
        return "a list"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a group of keys"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def _show(value: Any) -> str:
    return repr(value) if not isinstance(value, Mapping) else "a group of keys"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
