"""From overrides to a checked run: Hydra's compose API over the YAML groups beside this file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from base.errors import UmbelError, did_you_mean
from base.files import write_text
from configs.check import check
from configs.schema import EXECUTION_KEYS, EXECUTION_SECTIONS, RunConfig
from configs.typed import build

CONFIG_DIR = Path(__file__).resolve().parent
_OVERRIDE = re.compile(r"^(?P<prefix>\+\+|\+|~)?(?P<key>[\w./@-]+)(?P<rest>=.*)?$", re.DOTALL)


def compose(overrides: list[str], config_dir: Path | None = None) -> RunConfig:
    """Compose ``config.yaml`` with Hydra overrides (``model=bloom_560m optimizer.lr=1e-4``) and check it.

    ``config_dir`` is a folder with groups of one's own, searched before the built-in ones' fallback.

    Raises:
        UmbelError: a group, key or value that does not exist or does not fit.
    """
    return from_dict(_compose_dict(overrides, config_dir))


def from_dict(value: Any) -> RunConfig:
    """Check plain data against the schema and the rules across fields."""
    config = build(RunConfig, value)
    check(config)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def load(path: Path) -> RunConfig:
    """Read a frozen ``run.yaml``.

    Raises:
        UmbelError: the file is missing, is no YAML, or does not fit the schema.
    """
    try:
        return from_dict(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise UmbelError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except yaml.YAMLError as error:
        raise UmbelError(f"is not YAML ({str(error).splitlines()[0]})", where=str(path)) from error


def save(config: RunConfig, path: Path) -> None:
    """Freeze a run. Keys that look like secrets are refused by `configs.check`, so none is written."""
    write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def differing_keys(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """The defining keys in which two runs differ, as (key, old, new)."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if is_defining(key) and before.get(key) != after.get(key)
    ]


def is_defining(key: str) -> bool:
    return key.split(".")[0] not in EXECUTION_SECTIONS and key not in EXECUTION_KEYS


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def groups(config_dir: Path | None = None) -> dict[str, list[str]]:
    """The config groups and the presets in each."""
    found: dict[str, set[str]] = {}
    for root in (CONFIG_DIR, config_dir):
        for file in sorted(root.glob("*/**/*.yaml")) if root else ():
            relative = file.relative_to(root).with_suffix("")
            found.setdefault(relative.parts[0], set()).add("/".join(relative.parts[1:]))
    return {group: sorted(names) for group, names in found.items()}


def _compose_dict(overrides: list[str], config_dir: Path | None) -> Any:
    # Hydra is slow to import, and `umbel --help` must not wait for it.
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = groups(config_dir)
    prepared = [_prepare(override, known) for override in overrides]
    if any(override.startswith("data.path=") for override in overrides) and not any(
        override.startswith("data=") for override in overrides
    ):
        prepared.append("data=local")
    if config_dir is not None:
        prepared.append(f"hydra.searchpath=[file://{config_dir.resolve()}]")
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
            composed = hydra_compose("config", overrides=prepared)
            return OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException) as error:
        # Hydra hides the reason in the cause.
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UmbelError(reason, where="config") from error


def _prepare(override: str, known: dict[str, list[str]]) -> str:
    """Let plain ``key=value`` set any key; our schema, not Hydra, then says which exist."""
    match = _OVERRIDE.match(override)
    if not match or (match["rest"] is None and match["prefix"] != "~"):
        raise UmbelError("is not an override", where=repr(override), fix="write key=value, or group=preset")
    key, prefix = match["key"], match["prefix"]
    if key in known:
        preset = (match["rest"] or "=")[1:]
        if preset not in known[key] and preset not in ("null", ""):
            raise UmbelError(
                f"no preset '{preset}'", where=f"{key}={preset}", fix=did_you_mean(preset, known[key])
            )
        return override
    if "." not in key and prefix is None:
        sections = {*known, *(field.name for field in dataclasses.fields(RunConfig))}
        raise UmbelError("no such group", where=override, fix=did_you_mean(key, sections))
    return override if prefix else f"++{override}"
