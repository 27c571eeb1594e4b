"""What a run plans to take of each source, and what it has taken."""

from __future__ import annotations

from typing import Any

from base.errors import UmbelError
from configs.batch import sequences_at
from configs.schema import RunConfig
from data.order.consumption import check_caps, consumption
from data.order.global_order import GlobalOrder
from data.order.sizes import sizes_of
from data.order.weights import plan
from data.sources import sources_of
from launch.batches import kept_manifest, prepared_rows
from record.events import read_events
from record.folder import RunFolder
from record.jsonl import tail_lines
from record.metrics import KEYS, lineage


def mix_of(config: RunConfig, manifest: dict[str, Any], consumed_sequences: int | None) -> dict[str, Any]:
    """The mixture as plain data: the phases with each source's share of the rows, and per source what it
    holds, what the whole run will take, and what is taken by ``consumed_sequences``.

    Raises:
        UmbelError: there is no such mixture (see `data.order.weights.plan`).
    """
    data, length = config.data, config.data.sequence_length
    total = sequences_at(config.schedule, config.schedule.steps)
    phases = plan(data, manifest, total)
    order = GlobalOrder(phases, data.skip, config.schedule.global_batch, config.run.seed)
    planned = consumption(order, manifest, total)
    consumed = {} if consumed_sequences is None else consumption(order, manifest, consumed_sequences)
    sizes, whole = sizes_of(manifest), sum(taken["tokens"] for taken in planned.values())
    return {
        "run": config.run.name,
        "sequences": total,
        "tokens": total * length,
        "consumed_sequences": consumed_sequences,
        "phases": [
            {"from_sequence": start, "from_tokens": start * length, "shares": weights}
            for start, weights in phases
        ],
        "sources": {
            name: {
                "share": planned[name]["tokens"] / whole if name in planned else 0.0,
                "tokens": round(sizes[name].tokens) if name in sizes else None,
                "is_exact": name in sizes and sizes[name].is_exact,
                "planned": planned.get(name),
                "consumed": consumed.get(name),
                "max_epochs": source.max_epochs,
            }
            for name, source in sources_of(data).items()
        },
        "problem": _problem(config, manifest, order, total),
    }


def manifest_of(folder: RunFolder | None, config: RunConfig, changed: bool) -> dict[str, Any]:
    """The manifest that a run keeps of its data; where there is none, or settings are ``changed``, that of
    the data itself, prepared now where it is not yet."""
    kept = kept_manifest(folder) if folder and not changed else None
    return kept or prepared_rows(config).manifest


def sequences_so_far(folder: RunFolder) -> int:
    """What a run's newest step says it has consumed; 0 before the first."""
    if not folder.metrics.is_file():
        return 0
    lines = lineage(tail_lines(folder.metrics, keys=KEYS), read_events(folder))
    return int(lines[-1]["sequences"]) if lines else 0


def _problem(config: RunConfig, manifest: dict[str, Any], order: GlobalOrder, total: int) -> str | None:
    try:
        check_caps(config.data, manifest, order, total)
    except UmbelError as error:
        return str(error)
    return None
