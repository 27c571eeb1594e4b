"""Weights & Biases: the same run however often it restarts, another after a rollback; online with a key."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from configs.plain import to_dict
from configs.schema import RunConfig
from record.events import read_events, record_event
from record.folder import RunFolder
from record.rollback import rollbacks

INIT_SECONDS = 60.0
FINISH_SECONDS = 30.0
"""How long a slow network may hold up a start and an end."""


class Branch(NamedTuple):
    """The run in the tracker that the steps of now belong to."""

    id: str
    from_step: int = 0
    continues: str | None = None  # the id of the one that holds the steps up to `from_step`


def branch(run_id: str, events: Sequence[dict[str, Any]]) -> Branch:
    """What a start logs to: a run of its own after each rollback, for a tracker cannot take back a value.

    The one before stays as it was. Steps up to ``from_step`` are where a rollback found them: in the newest
    branch that began before.
    """
    branches = [Branch(run_id)]
    for number, rollback in enumerate(rollbacks(events), 1):
        step = rollback["to"]
        before = next((each for each in reversed(branches) if each.from_step < step), branches[0])
        branches.append(Branch(f"{run_id}-r{number}", step, before.id))
    return branches[-1]


class Wandb:
    """A sink for metric lines. The tracker never stops a run: after its first fault it is silent.

    After a rollback it is another run of the same group (see `branch`), so that no step has two values.
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
        at, name = branch(run_id, read_events(self.folder)), config.run.name
        self.run = wandb.init(
            project=config.tracker.project,
            entity=config.tracker.entity,
            group=run_id,
            name=f"{name} from step {at.from_step}" if at.continues else name,
            id=at.id,
            resume="allow",
            dir=str(self.folder.path),
            config=to_dict(config) | _continues(at),
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


def _continues(at: Branch) -> dict[str, Any]:
    return {"continues": {"id": at.continues, "step": at.from_step}} if at.continues else {}
