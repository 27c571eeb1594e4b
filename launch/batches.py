"""A run's batches, opened without any worker."""

from __future__ import annotations

from pathlib import Path

from base.errors import UmbelError
from configs.compose import compose, load
from configs.schema import RunConfig
from data.prepare import prepare_run
from data.prepared import Prepared
from data.sources import weights_of
from data.stream import BatchStream
from launch.overrides import apply
from launch.screens.console import say
from record.folder import RunFolder


def chosen_config(run: str | None, overrides: list[str], config_dir: Path | None) -> RunConfig:
    """The frozen config of a run with overrides on it, or one composed from overrides alone."""
    if run is None:
        return compose(overrides, config_dir)
    return apply(load(RunFolder.find(run).run_yaml), overrides, config_dir)


def prepared_rows(config: RunConfig) -> Prepared:
    """The run's tokenized rows, prepared now where they are not yet."""
    return prepare_run(config, say)


def open_stream(config: RunConfig) -> BatchStream:
    """The run's batches by step."""
    prepared, weights = prepared_rows(config), weights_of(config.data)
    return BatchStream(prepared, config.schedule, config.run.seed, weights)


def parse_steps(text: str, last: int) -> range:
    """``7`` or ``3:10`` (10 not included), steps counted from 1 to ``last``.

    Raises:
        UmbelError: anything else.
    """
    first, colon, end = text.partition(":")
    if not first.isdecimal() or (colon and not end.isdecimal()):
        raise UmbelError(f"{text!r} is no range of steps", where="--steps", fix="write 3 or 3:10")
    steps = range(int(first), int(end) if colon else int(first) + 1)
    if not steps or steps[0] < 1:
        raise UmbelError(f"{text} holds no step", where="--steps", fix="steps count from 1: write 3 or 3:10")
    return check_steps(steps, last, "--steps")


def check_steps(steps: range, last: int, where: str) -> range:
    """The same steps, where the run has them.

    Raises:
        UmbelError: it has fewer.
    """
    if steps and steps[-1] > last:
        raise UmbelError(
            f"{steps[-1]} is beyond schedule.steps={last}",
            where=where,
            fix="to look further, set that higher",
        )
    return steps
