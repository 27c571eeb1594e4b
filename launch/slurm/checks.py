"""What can be known to be wrong before anything is queued."""

from __future__ import annotations

import math
import os
from pathlib import Path

from base.errors import UmbelError
from configs.schema import Cluster
from configs.slurm_time import slurm_seconds
from launch.slurm import queries
from launch.slurm.jobs import active_jobs
from launch.slurm.site import Site, takes_devices
from record.folder import RunFolder

_FILES = 2
"""Files that each process adds to a checkpoint, at most; and its logs, over a few attempts."""

_CODE = 500
"""Files of a code snapshot with what Python compiles of them, roughly."""


def check_free(folder: RunFolder) -> None:
    """Refuse a run for which a job waits or works already.

    Raises:
        UmbelError: names the job.
    """
    waiting = active_jobs(folder)
    if waiting:
        job = waiting[0]
        raise UmbelError(
            f"job {job.id} of this run is {job.state}",
            where=str(folder.path),
            fix=f"umbel stop {folder.handle}, or set another run.name",
        )


def check_site(cluster: Cluster, processes: int, known: Site) -> None:
    """Refuse a time beyond the limits, more devices than a node has, more nodes than there are.

    Raises:
        UmbelError: says what is asked for, and what there is.
    """
    _check_time(cluster, known)
    _check_devices(cluster, processes, known)
    _check_nodes(cluster, known)


def job_seconds(cluster: Cluster, known: Site | None) -> float | None:
    """How long one job may take; None where neither the profile nor the site says."""
    if cluster.slurm.time:
        return slurm_seconds(cluster.slurm.time)
    return (known.partition.default_time or known.partition.limit) if known else None


def files_needed(checkpoints: int, world_size: int) -> int:
    """Files that a run leaves behind, roughly."""
    return (checkpoints + 2) * _FILES * world_size + _CODE


def files_free(folder: Path) -> int | None:
    """How many files the disk of a folder takes yet; None where it does not count them."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    facts = os.statvfs(place)
    return facts.f_favail if facts.f_files else None


def _check_time(cluster: Cluster, known: Site) -> None:
    asked = slurm_seconds(cluster.slurm.time) if cluster.slurm.time else None
    if asked is None:
        return
    limits = {f"partition {known.partition.name}": known.partition.limit}
    # A partition's QOS and the job's both bind; one that may override partitions is Slurm's to judge.
    if cluster.slurm.qos is not None:
        named = {qos.name: qos.limit for qos in queries.qualities()}
        limits[f"QOS {cluster.slurm.qos}"] = named.get(cluster.slurm.qos)
    for what, limit in limits.items():
        if limit is not None and limit != math.inf and asked > limit:
            raise UmbelError(
                f"{cluster.slurm.time} is beyond the limit of {what}: {slurm_time(limit)}",
                where="cluster.slurm.time",
                fix="lower it: the run goes on in its next job",
            )


def _check_devices(cluster: Cluster, processes: int, known: Site) -> None:
    if not takes_devices(cluster):
        return
    most = known.devices_per_node(cluster)
    if processes > most:
        raise UmbelError(
            f"{processes} {cluster.slurm.gres} on each node are asked for, but nodes of partition "
            f"{known.partition.name} have {most}",
            where="cluster.devices_per_node",
            fix=f"set it to at most {most}, and cluster.nodes to as many as are needed",
        )


def _check_nodes(cluster: Cluster, known: Site) -> None:
    asked, partition = cluster.nodes + cluster.spare_nodes, known.partition
    most = min(partition.nodes, partition.max_nodes or partition.nodes)
    if asked > most:
        spares = f" with {cluster.spare_nodes} spare" if cluster.spare_nodes else ""
        raise UmbelError(
            f"{asked} nodes{spares} are asked for, but a job in {partition.name} gets at most {most}",
            where="cluster.nodes",
            fix="lower it, or cluster.spare_nodes",
        )


def slurm_time(seconds: float) -> str:
    """``20:00:00``, ``4-04:00:00``."""
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock
