"""A submission as it would be: everything that can be looked at before anything is written."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from configs.batch import check_batch
from configs.check import warnings
from configs.schema import Cluster, RunConfig
from launch.begun import changed_keys
from launch.job import code_state
from launch.plan import Plan, make_plan
from launch.slurm import checks, queries
from launch.slurm.ask import has_slurm
from launch.slurm.grace import grace_seconds
from launch.slurm.request import Request, request
from launch.slurm.sbatch import try_out
from launch.slurm.script import script
from launch.slurm.site import Share, Site, processes_per_node, site
from launch.slurm.snapshot import snapshot_name
from launch.supervise.blame import left_out
from record.events import read_events
from record.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """A run that could be submitted. Times in seconds; ``starts`` in how many, None where Slurm did not say.

    ``known`` is None without a Slurm to ask. ``blamed``: nodes left out for their faults in this run.
    ``files_free`` is None where the disk does not count files.
    """

    config: RunConfig
    folder: RunFolder
    request: Request
    known: Site | None
    plan: Plan
    text: str
    changed: list[tuple[str, object, object]]
    blamed: list[str]
    uncommitted: bool
    files_needed: int
    files_free: int | None
    job_seconds: float | None
    starts: float | None = None

    @property
    def world_size(self) -> int:
        return self.plan.world_size

    @property
    def node_hours(self) -> float | None:
        """Of all jobs of the chain, if each takes all its time; None where no limit is known."""
        if self.job_seconds is None:
            return None
        return self.request.nodes * self.config.cluster.slurm.jobs * self.job_seconds / 3600

    @property
    def problems(self) -> list[str]:
        """What will most probably go wrong, though Slurm would take the job."""
        found = [self.plan.problem] if self.plan.problem else []
        if self.plan.disk_needed > self.plan.disk_free:
            found.append("the disk is too small for the checkpoints that are kept")
        if self.files_free is not None and self.files_needed > self.files_free:
            found.append("the disk takes too few files for the checkpoints that are kept")
        return found

    @property
    def warnings(self) -> list[str]:
        """What is probably not meant."""
        return warnings(self.config, self.world_size)


def look(config: RunConfig, *, change: bool = False, to_submit: bool = True) -> Prospect:
    """Look at a run whose paths are absolute as it would be submitted; cheap checks first.

    Args:
        change: let defining keys of a run that was begun change.
        to_submit: refuse what could not be submitted now. Else whatever can be told is told.

    Raises:
        UmbelError: a check refuses; where Slurm refuses, in its own words.
    """
    folder = RunFolder.of(config)
    blamed = _blamed(config, folder)
    cluster = _without(config.cluster, blamed)
    known = site(cluster)
    processes = processes_per_node(config, known)
    check_batch(config, cluster.nodes * processes)
    if known is not None:
        checks.check_site(cluster, processes, known)
    changed = []
    if to_submit:
        changed = changed_keys(config, folder, change)
        checks.check_free(folder)
    share = known.share(cluster, processes) if known else None
    asked = _request(config, cluster, processes, share)
    text = script(asked)
    starts = try_out(text, cluster.slurm) if to_submit else None
    plan = make_plan(_on_nodes(config, share), cluster.nodes * processes)
    return Prospect(
        config=config,
        folder=folder,
        request=asked,
        known=known,
        plan=plan,
        text=text,
        changed=changed,
        blamed=blamed,
        uncommitted=bool(code_state()[0].get("uncommitted")),
        files_needed=checks.files_needed(plan.checkpoints_kept, plan.world_size),
        files_free=checks.files_free(Path(os.path.abspath(folder.path))),
        job_seconds=checks.job_seconds(cluster, known),
        starts=None if starts is None else max(0.0, starts - time.time()),
    )


def _request(config: RunConfig, cluster: Cluster, processes: int, share: Share | None) -> Request:
    folder = RunFolder.of(config)
    return request(
        replace(config, cluster=cluster),
        processes_per_node=processes,
        share=share,
        grace=grace_seconds(cluster.slurm, folder),
        code=folder.path.resolve() / "job" / snapshot_name(),
    )


def _blamed(config: RunConfig, folder: RunFolder) -> list[str]:
    """Nodes to which too many faults of this run were put down, if the site still has them."""
    events = read_events(folder) if folder.events.is_file() else []
    nodes = left_out(events, config.supervision.blame)
    if not nodes or not has_slurm():
        return nodes
    here = {node.name for node in queries.nodes()}
    return [node for node in nodes if node in here]


def _without(cluster: Cluster, nodes: list[str]) -> Cluster:
    """The profile with further nodes never to be given."""
    exclude = list(dict.fromkeys([*cluster.slurm.exclude, *nodes]))
    return replace(cluster, slurm=replace(cluster.slurm, exclude=exclude))


def _on_nodes(config: RunConfig, share: Share | None) -> RunConfig:
    """A copy that is planned as it runs on the nodes, whatever devices and memory this machine has."""
    made = copy.deepcopy(config)
    if made.cluster.device == "auto":
        made.cluster.device = "cuda"
    elif made.cluster.device == "cpu" and made.cluster.memory_gb is None and share and share.memory:
        made.cluster.memory_gb = share.memory / 1024
    return made
