"""Every so many steps: do all replicas still hold the same weights?"""

from __future__ import annotations

from base.errors import RunFailed
from train.distributed import World
from train.engine import Engine
from train.loop import StepRecord
from train.replicas import disagreement


class CompareReplicas:
    """Stops the run on all processes where replicas differ, every ``every`` steps (0: never).

    It stands before the checkpoints' hook: what it refuses is not saved.
    """

    def __init__(self, engine: Engine, world: World, every: int) -> None:
        self.engine, self.world, self.every = engine, world, every if world.size > 1 else 0
        self.agreed = 0

    def after_step(self, record: StepRecord) -> None:
        """Compare, where it is time to. Collective.

        Raises:
            RunFailed: on every process: which tensor, on which ranks, and the last step known to be good.
        """
        step = record.position.step
        if not self.every or step % self.every:
            return
        if difference := disagreement(self.engine, self.world):
            run = self.engine.config.run.name
            since = f"after step {self.agreed}" if self.agreed else "since this start"
            raise RunFailed(
                f"replicas differ: {difference}",
                where=f"step {step}",
                fix=f"they came apart {since}: look at that rank's machine, go back to a checkpoint before "
                f"that (umbel rollback {run} --to STEP), then umbel resume {run}",
            )
        self.agreed = step
