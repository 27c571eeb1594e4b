"""Whether memory and disk can hold the run: asked once, before a new run's data is prepared."""

from __future__ import annotations

from base.errors import UmbelError
from base.files import human_bytes
from configs.schema import RunConfig
from record.folder import RunFolder


def check_fits(config: RunConfig, folder: RunFolder, processes: int) -> None:
    """Refuse a model that the memory or the disk cannot hold. Imports torch, and fills no tensor.

    Raises:
        UmbelError: says what it needs and what there is.
    """
    from launch.plan import make_plan

    plan = make_plan(config, processes)
    if plan.problem is not None:
        raise UmbelError(plan.problem, fix="umbel plan shows the parts; --yes starts all the same")
    if plan.disk_needed > plan.disk_free:
        raise UmbelError(
            f"{human_bytes(plan.disk_free)} are free, but {plan.checkpoints_kept} + 1 checkpoints of "
            f"{human_bytes(plan.checkpoint_bytes)} need {human_bytes(plan.disk_needed)}",
            where=str(folder.path),
            fix="set run.dir to another disk, lower checkpoint.keep_last, or pass --yes",
        )
