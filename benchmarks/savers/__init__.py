"""Ways to save a training state, each behind the same small door, as its own documents use it.

All train the same model with the worker's own loop and engine; only the hook that saves is theirs.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from configs.schema import RunConfig
    from data.stream import BatchStream
    from record.folder import RunFolder
    from train.distributed import World
    from train.engine import Engine
    from train.hooks.metrics import Metrics
    from train.loop import StepRecord
    from train.stop import StopRequest

TOOLS = {
    "umbel": "ours:Ours",
    "umbel, synchronous": "ours:Synchronous",
    "deepspeed": "deepspeed_own:DeepSpeed",
    "accelerate": "accelerate_own:Accelerate",
    "dcp thread": "dcp:Threaded",
    "dcp thread, staged beside": "dcp:StagedBeside",
    "dcp process": "dcp:Process",
}
"""Name of a tool, and where its adapter is."""


@dataclass(frozen=True)
class Bench:
    """What a tool is given: a live engine and a folder of its own."""

    config: RunConfig
    world: World
    folder: RunFolder
    stream: BatchStream
    engine: Engine
    metrics: Metrics
    stop: StopRequest

    def place(self, step: int) -> Path:
        """Where a tool without a rule of its own saves a step."""
        return self.folder.path / "saved" / f"{step:08d}"


class Tool(Protocol):
    """A hook of the loop that saves where a record says so.

    ``overrides`` are keys of the run that it needs otherwise; ``requires`` the distributions whose versions
    are told; ``beside`` says whether anything is left to be written when a save returns.
    """

    beside: bool
    overrides: tuple[str, ...]
    requires: tuple[str, ...]

    def __init__(self, bench: Bench) -> None: ...

    @staticmethod
    def build(config: RunConfig, world: World, micro_batch: int) -> Engine:
        """The engine that it saves from."""

    def after_step(self, record: StepRecord) -> None:
        """As `train.loop.Hook`. Returns when training may go on."""

    def finish(self) -> float:
        """Wait until the last save is on the disk; the `time.time` since which it is."""

    def saved(self, step: int) -> Path:
        """The folder of a save."""

    def load(self, checkpoint: Path) -> None:
        """Fill the live engine."""

    def close(self) -> None: ...


def load_tool(name: str) -> type[Tool]:
    module, _, kind = TOOLS[name].partition(":")
    found: type[Tool] = getattr(importlib.import_module(f"savers.{module}"), kind)
    return found
