"""A run's batches, opened without any worker."""

from __future__ import annotations

from pathlib import Path

from base.errors import UmbelError
from base.files import read_json
from configs.compose import compose, differing_keys, load
from configs.schema import RunConfig
from data.inspect import BEGINNING, Start
from data.manifest import Manifest, check_manifest, check_unchanged
from data.prepare import prepare_run
from data.prepared import Prepared
from data.stream import BatchStream
from launch.overrides import apply
from launch.screens.console import say
from launch.screens.preparing import preparing
from record.folder import RunFolder
from train.cursors import nearest_cursors
from train.left_out import files_left_out


def chosen_config(run: str | None, overrides: list[str], config_dir: Path | None) -> RunConfig:
    """The frozen config of a run with overrides on it, or one composed from overrides alone."""
    if run is None:
        return compose(overrides, config_dir)
    return apply(load(RunFolder.find(run).run_yaml), overrides, config_dir)


def prepared_rows(config: RunConfig, run: str | None = None) -> Prepared:
    """The run's tokenized rows, prepared now where they are not yet.

    Raises:
        UmbelError: ``run`` began with other data; names the file. Defining keys that differ from the run's
            ask for other rows, which are not compared.
    """
    began_with = _began_with(run, config) if run else None
    with preparing() as report:
        prepared = prepare_run(config, say, report, began_with)
    if began_with is not None:
        check_unchanged(began_with, prepared.manifest)
    return prepared


def kept_manifest(folder: RunFolder) -> Manifest | None:
    """The manifest that a run keeps of the data it began with; None before its first start.

    Raises:
        UmbelError: another version of Umbel wrote it.
    """
    path = folder.path / "data.json"
    if not path.is_file():
        return None
    manifest: Manifest = read_json(path)
    check_manifest(manifest, str(path))
    return manifest


def _began_with(run: str, config: RunConfig) -> Manifest | None:
    folder = RunFolder.find(run)
    return None if differing_keys(load(folder.run_yaml), config) else kept_manifest(folder)


def open_stream(config: RunConfig, run: str | None = None) -> BatchStream:
    """The run's batches by step."""
    left_out = files_left_out(RunFolder.find(run)) if run else None
    return BatchStream(prepared_rows(config, run), config, left_out)


def start_before(stream: BatchStream, run: str | None, step: int) -> Start:
    """From where to read on to ``step``: a streamed run's last checkpoint before it, else the beginning."""
    if run is None or not stream.is_streaming:
        return BEGINNING
    return Start(*nearest_cursors(RunFolder.find(run).checkpoints, step - 1, stream.cursors_shape))


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
