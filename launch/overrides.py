"""Overrides on a frozen run: what `umbel resume` changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from base.errors import UmbelError
from configs.compose import compose, from_dict, groups
from configs.plain import to_dict
from configs.schema import RunConfig


def apply(config: RunConfig, overrides: list[str], config_dir: Path | None = None) -> RunConfig:
    """The run with ``group=preset`` sections replaced and ``key=value`` keys set, in that order.

    Raises:
        UmbelError: an override that does not parse, does not exist, or does not fit.
    """
    presets = groups(config_dir)
    changed = copy.deepcopy(to_dict(config))
    keys = []
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise UmbelError(
                "is not an override", where=repr(override), fix="write key=value, or group=preset"
            )
        if name == "experiment":
            raise UmbelError(
                "makes a new run", where=override, fix="use umbel launch, or override single keys"
            )
        if name in presets:
            changed[name] = to_dict(compose([override], config_dir))[name]
        else:
            keys.append((name.lstrip("+"), _parse(override), value))
    for name, value, _ in keys:
        _set(changed, name, value)
    return from_dict(changed)


def _parse(override: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override).value()
    except HydraException as error:
        reason = str(error).strip().splitlines()[0]
        raise UmbelError(f"cannot be read ({reason})", where=repr(override), fix="write key=value") from error


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        node = tree.get(parent)
        if not isinstance(node, dict):
            node = tree[parent] = {}
        tree = node
    tree[leaf] = value
