"""Weights & Biases: the same run however often it restarts, online where there is a key."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from configs.compose import to_dict
from configs.schema import RunConfig
from record.events import record_event
from record.folder import RunFolder


def wandb_sink(config: RunConfig, folder: RunFolder, run_id: str) -> Callable[[list[dict[str, Any]]], None]:
    """Start or continue the run's wandb run; returns the sink for metric lines.

    Without a key it runs offline, and ``wandb sync`` uploads it later. The tracker never stops a run: a fault
    is recorded once, and metrics.jsonl goes on.
    """
    import wandb

    key = os.environ.get("WANDB_API_KEY") or wandb.api.api_key
    mode = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
    run = wandb.init(
        project=config.tracker.project,
        entity=config.tracker.entity,
        name=config.run.name,
        id=run_id,
        resume="allow",
        dir=str(folder.path),
        config=to_dict(config),
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True, console="off", disable_git=True),
    )
    record_event(folder, "tracker", name="wandb", id=run.id, mode=mode, url=run.url)

    def log(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
            run.log(numbers, step=line["step"])

    return log
