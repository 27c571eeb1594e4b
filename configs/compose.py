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
from configs.plain import flatten, to_dict
from configs.schema import EXECUTION_KEYS, EXECUTION_SECTIONS, PLACES, RunConfig
from configs.typed import build

CONFIG_DIR = Path(__file__).resolve().parent
_OVERRIDE = re.compile(r"^(?P<prefix>\+\+|\+|~)?(?P<key>[\w./@-]+)(?P<rest>=.*)?$", re.DOTALL)


def compose(overrides: list[str], config_dir: Path | None = None) -> RunConfig:
    """Compose ``config.yaml`` with Hydra overrides (``model=bloom_560m optimizer.lr=1e-4``) and check it.

    ``config_dir`` is a folder with groups of one's own beside the built-in ones.

    Raises:
        UmbelError: a group, key or value that does not exist or does not fit.
    """
    return from_dict(_compose_dict(overrides, config_dir))


def from_dict(value: Any) -> RunConfig:
    """Check plain data against the schema and the rules across fields."""
    config = build(RunConfig, value)
    check(config)
    return config


def load(path: Path) -> RunConfig:
    """Read a frozen ``run.yaml``.

    Raises:
        UmbelError: the file is missing, is no YAML, or does not fit the schema.
    """
    try:
        return from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UmbelError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UmbelError(f"is not YAML ({str(error).splitlines()[0]})", where=str(path)) from error
    except UmbelError as error:
        raise UmbelError(error.what, where=f"{path}: {error.where}", fix=error.fix) from error


def save(config: RunConfig, path: Path) -> None:
    """Freeze a run. Keys that look like secrets are refused by `configs.check`, so none is written."""
    plain = to_dict(config)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != plain:
        # Unescaped, PyYAML loses rare line separators such as U+0085.
        text = yaml.safe_dump(plain, sort_keys=False)
    write_text(path, text)


def differing_keys(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """The defining keys in which two runs differ, as (key, old, new)."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if is_defining(key) and before.get(key) != after.get(key)
    ]


def is_defining(key: str) -> bool:
    """Whether another value of ``key`` makes another run."""
    execution = key.split(".")[0] in EXECUTION_SECTIONS or key in EXECUTION_KEYS
    return not execution and not re.fullmatch(PLACES, key)


def groups(config_dir: Path | None = None) -> dict[str, list[str]]:
    """The config groups and the presets in each, those of ``config_dir`` among them.

    Raises:
        UmbelError: ``config_dir`` is no folder, or holds a preset that exists already.
    """
    found: dict[str, list[str]] = {}
    for root in [CONFIG_DIR] + ([config_dir] if config_dir else []):
        if not root.is_dir():
            raise UmbelError("no such folder", where=str(root), fix="name one that holds config groups")
        for file in sorted(root.glob("*/**/*.yaml")):
            group, *name = file.relative_to(root).with_suffix("").parts
            presets, preset = found.setdefault(group, []), "/".join(name)
            if preset in presets:
                raise UmbelError(f"{group}={preset} is Umbel's own already", where=str(file), fix="rename it")
            presets.append(preset)
    return {group: sorted(presets) for group, presets in found.items()}


def _compose_dict(overrides: list[str], config_dir: Path | None) -> Any:
    # Hydra is slow to import, and `umbel --help` must not wait for it.
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = groups(config_dir)
    prepared = [_prepare(override, known) for override in overrides]
    names = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "data.path" in names and "data" not in names:
        prepared.append("data=local")
    if config_dir is not None:
        prepared.append(f'hydra.searchpath=["file://{config_dir.resolve()}"]')
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
            composed = hydra_compose("config", overrides=prepared)
            return OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> UmbelError:
    """What Hydra, OmegaConf or YAML found wrong, in one line."""
    from hydra.errors import OverrideParseException

    ambiguous = re.match(r"Ambiguous value for argument '(?:\+\+)?(.*)'", str(error))
    if isinstance(error, OverrideParseException) or ambiguous:
        override = ambiguous[1] if ambiguous else getattr(error, "override", "").removeprefix("++")
        fix = """quote a value that holds , = ( ) [ ] { } twice: data.path='"a,b.jsonl"'"""
        return UmbelError("cannot be read as an override", where=override, fix=fix)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return UmbelError(f"is not YAML ({error.problem})", where=f"{mark.name}:{mark.line + 1}")
    # Hydra hides the reason in the cause.
    reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
    return UmbelError(reason, where="config")


def _prepare(override: str, known: dict[str, list[str]]) -> str:
    """Let plain ``key=value`` set any key; our schema, not Hydra, then says which exist."""
    match = _OVERRIDE.match(override)
    if not match or (match["rest"] is None and match["prefix"] != "~"):
        raise UmbelError("is not an override", where=repr(override), fix="write key=value, or group=preset")
    key, prefix = match["key"], match["prefix"]
    if key in known:
        preset = (match["rest"] or "")[1:]
        if prefix != "~" and preset not in known[key]:
            raise UmbelError(f"no preset '{preset}'", where=override, fix=did_you_mean(preset, known[key]))
        return override
    sections = [field.name for field in dataclasses.fields(RunConfig)]
    section, _, rest = key.partition(".")
    if section not in sections:
        raise UmbelError("no such group", where=override, fix=did_you_mean(section, {*known, *sections}))
    if not rest:
        raise UmbelError("has no presets", where=override, fix=f"set its keys: {key}.…=…")
    return override if prefix else f"++{override}"
