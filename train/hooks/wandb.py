"""Weights & Biases: the same run however often it restarts, online where there is a key."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

from configs.plain import to_dict
from configs.schema import RunConfig
from record.events import record_event
from record.folder import RunFolder

INIT_SECONDS = 60.0
FINISH_SECONDS = 30.0
"""How long a slow network may hold up a start and an end."""


class Wandb:
    """A sink for metric lines. The tracker never stops a run: after its first fault it is silent.

    Without a key it runs offline in ``<run>/wandb``, and ``wandb sync`` uploads that later. The fault is
    recorded as one warning; metrics.jsonl goes on.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, run_id: str) -> None:
        self.folder = folder
        self.run: Any = None
        self._guarded(lambda: self._start(config, run_id))

    def __call__(self, lines: list[dict[str, Any]]) -> None:
        """Log each line at its own ``step``, whatever was logged before."""
        if self.run is not None:
            self._guarded(lambda: self._log(lines))

    def __enter__(self) -> Wandb:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Upload what is left: the worker ends without the clean-up that wandb relies on."""
        if self.run is not None:
            self._guarded(lambda: self.run.finish(exit_code=int(error is not None)))
        self.run = None

    def _start(self, config: RunConfig, run_id: str) -> None:
        import wandb

        # Asked for only where nobody chose: it reads the key's places, and no network.
        mode = os.environ.get("WANDB_MODE")
        mode = mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        self.run = wandb.init(
            project=config.tracker.project,
            entity=config.tracker.entity,
            name=config.run.name,
            id=run_id,
            resume="allow",
            dir=str(self.folder.path),
            config=to_dict(config),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )
        # wandb's own step may never go back, but a resumed run repeats what was not saved: ours is the axis.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        url = self.run.url if mode == "online" else None
        record_event(self.folder, "tracker", name="wandb", id=self.run.id, mode=mode, url=url)

    def _log(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            of_sources = {
                f"data/{source}/{name}": value
                for source, facts in line.get("sources", {}).items()
                for name, value in facts.items()
            }
            numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
            self.run.log(numbers | of_sources)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        # Whatever a tracker raises, its process being killed included, is no reason to stop training.
        except Exception as error:
            self.run = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            record_event(self.folder, "warning", text=f"wandb stopped: {reason}; metrics.jsonl goes on")
