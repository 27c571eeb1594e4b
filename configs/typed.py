"""Turn plain data into dataclasses, refusing unknown keys and wrong types by their full path."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from base.errors import UmbelError, did_you_mean

T = TypeVar("T")


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
        return _literal(arguments, value, path)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, path)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong("a list", value, path)
        return [convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong("a group of keys", value, path)
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
            raise _wrong("a number", value, path) from None
    if isinstance(value, bool) != (hint is bool) or not isinstance(value, hint):
        raise _wrong({int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint], value, path)
    return value


def _literal(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return value
    listed = ", ".join(str(choice) for choice in choices)
    raise UmbelError(f"must be one of {listed}, not {_show(value)}", where=path)


def _union(members: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in members:
        return None
    errors = []
    for member in members:
        if member is type(None):
            continue
        try:
            return convert(member, value, path)
        except UmbelError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise UmbelError(" or ".join(error.what for error in errors), where=path)


def _wrong(kind: str, value: Any, path: str) -> UmbelError:
    return UmbelError(f"must be {kind}, not {_show(value)}", where=path)


def _show(value: Any) -> str:
    return repr(value) if not isinstance(value, Mapping) else "a group of keys"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
