"""How long before its end a job must be warned, so that its workers can finish a step and save."""

from __future__ import annotations

import math

from configs.check_cluster import LONGEST_GRACE
from configs.schema import Slurm
from configs.slurm_time import slurm_seconds
from record.events import read_events
from record.folder import RunFolder
from record.jsonl import tail_lines
from record.metrics import KEYS

LEAST, UNMEASURED = 60, 300
"""Seconds: for a run that is quick, and for one that has not been measured."""

_TIMES = 2.0
"""The last save is no quicker than the slowest so far, and the file system may be busy with everybody's."""

_RECENT_SAVES = 20


def grace_seconds(slurm: Slurm, folder: RunFolder) -> int:
    """Seconds from Slurm's warning to the limit: as given, else twice the slowest recent step and save.

    At most a third of the time limit, so that a short job also trains; and what sbatch takes at most.
    """
    if slurm.grace_seconds is not None:
        return slurm.grace_seconds
    measured = _measured(folder)
    wanted = UNMEASURED if measured is None else max(LEAST, math.ceil(_TIMES * measured))
    limit = slurm_seconds(slurm.time) if slurm.time else None
    if limit is not None and limit != math.inf:
        wanted = min(wanted, int(limit / 3))
    return min(wanted, LONGEST_GRACE)


def _measured(folder: RunFolder) -> float | None:
    """Seconds of the slowest recent step and the slowest recent save; None before both were seen."""
    lines = tail_lines(folder.metrics, keys=KEYS) if folder.metrics.is_file() else []
    steps = [line["step_seconds"] for line in lines if line.get("step_seconds")]
    events = read_events(folder) if folder.events.is_file() else []
    saves = [event["seconds"] for event in events if event["event"] == "checkpoint" and "seconds" in event]
    return max(steps) + max(saves[-_RECENT_SAVES:]) if steps and saves else None
