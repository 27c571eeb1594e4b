"""One process of one tool: ``python -m savers.measure TOOL FOLDER OVERRIDES…``, a request a line on stdin.

All processes of a tool get the same requests; each answers with a line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from configs.compose import compose
from configs.schema import RunConfig
from data.prepare import prepare
from data.stream import BatchStream
from record.folder import RunFolder
from record.metrics import MetricsWriter
from savers import Bench, Tool, load_tool
from train import distributed
from train.hooks.metrics import Metrics
from train.loop import Loop, StepRecord
from train.model import meta_model
from train.parameters import parameter_count
from train.position import Position
from train.stop import StopRequest


class Watch:
    """Around a tool's hook: when each step ended, before and after it, and how long a save held the loop.

    Held is the hook itself where it saves, and what waits before the next update. Where a save leaves
    nothing to be written ``to_the_disk`` waits for the disk right then, which is not held against the tool.
    """

    def __init__(self, bench: Bench, tool: Tool) -> None:
        self.bench, self.tool = bench, tool
        self.inner = bench.engine.before_update
        bench.engine.before_update = self._before_update
        self.reset(False)

    def reset(self, to_the_disk: bool) -> None:
        self.to_the_disk, self.durable = to_the_disk, 0.0
        self.held = self.began = self.returned = 0.0
        self.steps: list[tuple[float, float]] = []
        self.step = 0

    def after_step(self, record: StepRecord) -> None:
        began, clock = time.perf_counter(), time.time()
        self.tool.after_step(record)
        self.record = record
        if record.save:
            self.held += time.perf_counter() - began
            self.began, self.returned, self.step = clock, time.time(), record.position.step
            if self.to_the_disk and not self.tool.beside:
                self.durable = self.tool.finish()
        self.steps.append((clock, time.time()))

    def _before_update(self) -> None:
        began = time.perf_counter()
        self.inner()
        self.held += time.perf_counter() - began


class Worker:
    """A tool on a live engine, a few steps at a time."""

    def __init__(self, name: str, folder: Path, overrides: Sequence[str]) -> None:
        kind = load_tool(name)
        config = compose([*overrides, *kind.overrides, f"run.dir={folder}"])
        self.world = distributed.start(config.cluster)
        if self.world.device.type == "cpu":
            torch.set_num_threads(1)
        made = RunFolder.of(config)
        if self.world.is_first:
            made.create()
        self.world.barrier()
        self.position, self.saves = Position(), set[int]()
        self.loop, self.watch, self.tool = self._build(config, made, kind)
        count = parameter_count(meta_model(config.model)).total
        self.facts = {
            "parameters": count,
            "beside": kind.beside,
            "versions": {name: version(name) for name in kind.requires},
        }

    def _build(self, config: RunConfig, folder: RunFolder, kind: type[Tool]) -> tuple[Loop, Watch, Tool]:
        stream = BatchStream(prepare(config.data), config)
        micro_batch = config.schedule.global_batch // self.world.size
        engine, stop = kind.build(config, self.world, micro_batch), StopRequest(folder, polls=True)
        sinks = [MetricsWriter(folder, 1).write] if self.world.is_first else []
        metrics = Metrics(config, self.world, sinks, lambda _: None)
        bench = Bench(config, self.world, folder, stream, engine, metrics, stop)
        tool = kind(bench)
        watch = Watch(bench, tool)
        due = lambda step: step in self.saves  # noqa: E731
        loop = Loop(config, self.world, engine, stream, micro_batch, stop, due, [metrics, watch])
        return loop, watch, tool

    def round(self, before: int, after: int) -> dict[str, Any]:
        """Steps, a save, and steps while it is written."""
        gc.collect()
        self._run(before + after, {before}, to_the_disk=True)
        watch = self.watch
        durable = self.tool.finish() if self.tool.beside else watch.durable
        files = [file for file in self.tool.saved(watch.step).rglob("*") if file.is_file()]
        return {
            "blocked": watch.held,
            "total": max(durable - watch.began, watch.held),
            "bytes": sum(file.stat().st_size for file in files),
        }

    def rate(self, steps: int, every: int) -> dict[str, Any]:
        """Steps a second, from the end of a first one on, with a save then and every so many; 0: none."""
        self._run(1 + steps, set(range(1, 1 + steps, every)) if every else set())
        (first, _), *_, (_, last) = self.watch.steps
        if every:
            self.tool.finish()
        return {"rate": steps / (last - first)}

    def rest(self) -> dict[str, Any]:
        """Give back what is free: it would hide what the next save takes."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return {}

    def save(self) -> dict[str, Any]:
        """Of the state as it is, with no step beside it."""
        self.watch.after_step(replace(self.watch.record, save=True))
        self.tool.finish()
        return {}

    def keep(self) -> dict[str, Any]:
        """A last save, for others to load."""
        self._run(1, {1})
        self.tool.finish()
        return {"folder": str(self.tool.saved(self.watch.step))}

    def load(self, folder: str) -> dict[str, Any]:
        self.world.barrier()
        began = time.perf_counter()
        self.tool.load(Path(folder))
        self.world.barrier()
        return {"seconds": time.perf_counter() - began}

    def clear(self) -> dict[str, Any]:
        """Remove what was saved, and let the disk rest."""
        if self.world.is_first:
            shutil.rmtree(self.loop_folder / "saved", ignore_errors=True)
            os.sync()
        return {}

    @property
    def loop_folder(self) -> Path:
        return RunFolder.of(self.loop.config).path

    def _run(self, steps: int, saves: set[int], *, to_the_disk: bool = False) -> None:
        """``saves`` are counted from 1, the first of these steps."""
        self.saves = {self.position.step + step for step in saves}
        self.watch.reset(to_the_disk)
        self.position = self.loop.run(self.position, None, self.position.step + steps)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    name, folder, *overrides = sys.argv[1:]
    worker: Worker | None = None
    try:
        worker = Worker(name, Path(folder), overrides)
        print(json.dumps(worker.facts), file=answers)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": told(error)}), file=answers)
        return
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": told(error)}
        print(json.dumps(answer), file=answers)
    worker.tool.close()
    distributed.stop()


def told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200].rstrip(": ")


if __name__ == "__main__":
    main()
