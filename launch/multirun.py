"""Sweeps: one command line that stands for several runs, in Hydra's own notation."""

from __future__ import annotations

import itertools
from pathlib import Path

from base.errors import UmbelError
from configs.compose import compose
from configs.schema import RunConfig

MOST = 1000
"""Runs of one sweep; more are a slip of the pen."""


def expand(overrides: list[str], config_dir: Path | None = None) -> list[RunConfig]:
    """One config for each combination of swept values (``optimizer.lr=1e-4,3e-4``, ``run.seed=range(0,3)``).

    The runs are called ``<name>-0``, ``<name>-1``, … in the order of the values, the last key's running
    fastest; unless ``run.name`` itself is swept.

    Raises:
        UmbelError: no value is swept, or one cannot be listed; an override does not parse or does not fit.
    """
    choices = [_values(override) for override in overrides]
    if all(len(values) == 1 for values in choices):
        raise UmbelError(
            "no value is swept", where="--multirun", fix="give one several: optimizer.lr=1e-4,3e-4"
        )
    combinations = list(itertools.islice(itertools.product(*choices), MOST + 1))
    if len(combinations) > MOST:
        raise UmbelError(f"stands for more than {MOST} runs", where="--multirun")
    configs = [compose(list(combination), config_dir) for combination in combinations]
    if len({config.run.name for config in configs}) < len(configs):
        for number, config in enumerate(configs):
            config.run.name = f"{config.run.name}-{number}"
    return configs


def _values(override: str) -> list[str]:
    """The overrides that a swept one stands for; the override itself where nothing is swept."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return [override]  # composing says what is wrong with it
    if not parsed.is_sweep_override():
        return [override]
    try:
        values = [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
    except HydraException as error:  # interval(…), glob(…)
        raise UmbelError(
            "cannot be listed", where=override, fix="write the values, or range(first, end, step)"
        ) from error
    if not values:
        raise UmbelError("sweeps over no value", where=override)
    return values
