"""Accelerate's `save_state` on its DeepSpeed plugin."""

from __future__ import annotations

from pathlib import Path

from savers.deepspeed_own import DeepSpeed


class Accelerate(DeepSpeed):
    """Calls DeepSpeed's `save_checkpoint`, and adds the random number generators."""

    requires = ("accelerate", "deepspeed")

    def write(self, folder: Path) -> None:
        self.engine.accelerator.save_state(str(folder))

    def load(self, checkpoint: Path) -> None:
        self.engine.accelerator.load_state(str(checkpoint))
