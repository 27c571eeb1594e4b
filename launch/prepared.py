"""Preparing a run's data before its workers start."""

from __future__ import annotations

from base.files import read_json
from configs.schema import RunConfig
from launch import preflight
from launch.screens.console import say, warn
from launch.screens.data import cut_examples
from launch.screens.preparing import preparing
from record.events import record_event
from record.folder import RunFolder


def prepare_data(config: RunConfig, folder: RunFolder) -> None:
    """Prepare; refuse other data than the run began with, more of it than its caps allow, or changes to what
    it has read, before its run.yaml is touched.

    Raises:
        UmbelError: a fault in the sources, or one of these refusals.
    """
    from data.manifest import check_unchanged
    from data.order.consumption import check_caps
    from data.prepare import prepare_run
    from data.stream import BatchStream

    record_event(folder, "phase", name="preparing data")
    record = folder.path / "data.json"
    began_with = read_json(record) if record.exists() else None
    with preparing() as report:
        prepared = prepare_run(config, say, report, began_with)
    if began_with is not None:
        check_unchanged(began_with, prepared.manifest)
    stream = BatchStream(prepared, config)
    check_caps(config.data, prepared.manifest, stream.order, stream.total)
    preflight.check_change(config, folder, stream)
    for note in cut_examples(prepared.manifest):
        warn(note)
