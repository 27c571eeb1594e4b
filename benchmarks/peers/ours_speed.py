"""Speed of Umbel."""

from __future__ import annotations

from collections.abc import Iterator

import grain  # noqa: F401  (imported late by data.order; the peers' imports are not counted either)
import numpy as np

from base.files import write_json
from configs.compose import compose
from configs.schema import RunConfig
from data.prepare import prepare_run
from data.stream import BatchStream, Share
from peers import SEED, Rows
from peers.speed import BATCH, Material, Mode

GLOBAL_BATCH = 64


class Speed:
    """Both modes, as a run reads them."""

    requires = ("umbel", "tokenizers", "grain", "pyarrow")

    def write(self, material: Material, mode: Mode) -> None:
        config = config_of(material, mode, 0)
        prepared = prepare_run(config)
        if mode == "prepared":
            table = prepared.rows("text", "train")
            rows = np.lib.format.open_memmap(
                material.folder / "rows.npy", "w+", np.int32, (len(table), material.length)
            )
            for index in range(len(table)):
                rows[index] = table.row(index).ids[:-1]
            rows.flush()
        else:
            source = BatchStream(prepared, config)._sources["text"]
            numbers = [source.order.number(position) for position in range(source.order.epoch_length)]
            write_json(material.order, [number for number in numbers if number is not None])

    def open(self, material: Material, mode: Mode, workers: int, at: float | None) -> Iterator[Rows]:
        config = config_of(material, mode, workers)
        stream = BatchStream(prepare_run(config), config)
        first, cursors = 1, None
        if at is not None:
            size = stream.prepared.manifest["sources"]["text"]
            if mode == "prepared":
                first = 1 + int(at * len(stream.prepared.rows("text", "train"))) // GLOBAL_BATCH
            else:
                # Each lane as far as that into its documents; the step only says which lane is next.
                first, cursors = 1 + int(at * 1000), np.zeros(stream.cursors_shape, np.int64)
                cursors[:, :, 0] = int(at * sum(file["rows"] for file in size["files"])) // GLOBAL_BATCH
        steps = range(first, config.schedule.steps + 1)
        for step in stream.read(steps, Share(0, 1, BATCH), cursors):
            for batch in step.batches:
                yield batch.input_ids


def config_of(material: Material, mode: Mode, workers: int) -> RunConfig:
    return compose(
        [
            "run.name=throughput",
            f"run.seed={SEED}",
            "model=llama_tiny",
            "data=local",
            f"data.mode={mode}",
            f"data.sources={{text: {{path: '{material.folder / 'texts'}'}}}}",
            f"data.tokenizer.path='{material.tokenizer.parent}'",
            f"data.cache_dir='{material.own('umbel', mode)}'",
            f"data.sequence_length={material.length}",
            "data.held_out=0",
            f"data.workers={workers}",
            f"schedule.global_batch={GLOBAL_BATCH}",
            "schedule.steps=1000000",
            "schedule.warmup_steps=0",
        ]
    )
