"""The rules of the cluster section: what a profile may ask of Slurm, and how it must be written."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from base.errors import UmbelError
from base.secrets import names_secret
from configs.schema import Cluster, Container, Slurm
from configs.slurm_time import slurm_seconds

LONGEST_GRACE = 65535
"""Seconds; sbatch takes no more in ``--signal``."""

OURS = {
    "account": "cluster.slurm.account",
    "array": "cluster.slurm.chain and cluster.slurm.jobs",
    "chdir": "run.dir",
    "constraint": "cluster.slurm.constraint",
    "cpus-per-task": "cluster.slurm.cpus_per_device",
    "dependency": "cluster.slurm.chain",
    "error": "the run's folder",
    "exclude": "cluster.slurm.exclude",
    "gpus": "cluster.devices_per_node",
    "gpus-per-node": "cluster.devices_per_node",
    "gpus-per-task": "cluster.devices_per_node",
    "gres": "cluster.slurm.gres and cluster.devices_per_node",
    "job-name": "run.name",
    "mem": "cluster.slurm.memory_per_device_gb",
    "mem-per-cpu": "cluster.slurm.memory_per_device_gb",
    "mem-per-gpu": "cluster.slurm.memory_per_device_gb",
    "no-requeue": "the way a run goes on",
    "nodes": "cluster.nodes and cluster.spare_nodes",
    "ntasks": "cluster.nodes and cluster.devices_per_node",
    "ntasks-per-node": "cluster.devices_per_node",
    "open-mode": "the way logs are kept",
    "output": "the run's folder",
    "partition": "cluster.slurm.partition",
    "qos": "cluster.slurm.qos",
    "requeue": "the way a run goes on",
    "reservation": "cluster.slurm.reservation",
    "signal": "cluster.slurm.grace_seconds",
    "time": "cluster.slurm.time",
    "wrap": "the script",
}
"""Options of sbatch that other keys decide, and which."""

_OPTION = re.compile(r"[a-z][a-z0-9-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_GRES = re.compile(r"[A-Za-z][\w.-]*(:[A-Za-z][\w.-]*)?")
_WORD = re.compile(r"[^\s\"'\\;|&<>$`]+")
_AT_LEAST = {
    "spare_nodes": 0,
    "devices_per_node": 1,
    "slurm.cpus_per_device": 1,
    "slurm.jobs": 1,
    "slurm.grace_seconds": 0,
}


def check_cluster(cluster: Cluster) -> None:
    """Refuse a profile that Slurm, the shell or the container runtime would misread.

    Raises:
        UmbelError: the first rule that is broken.
    """
    values = dataclasses.asdict(cluster)
    for key, lowest in _AT_LEAST.items():
        value: Any = values
        for part in key.split("."):
            value = value[part]
        if value is not None and value < lowest:
            raise UmbelError(f"must be a whole number from {lowest} on, not {value}", where=f"cluster.{key}")
    _check_slurm(cluster.slurm)
    _check_lines(cluster)
    if cluster.container is not None:
        _check_container(cluster.container)


def cluster_warnings(cluster: Cluster) -> list[str]:
    """Keys that do nothing here: a profile may be used on this machine with ``cluster.launcher=local``."""
    if cluster.launcher == "slurm":
        return []
    usual = dataclasses.asdict(Cluster())
    given = dataclasses.asdict(cluster)
    idle = [f"slurm.{key}" for key in given["slurm"] if given["slurm"][key] != usual["slurm"][key]]
    idle += [key for key in ("spare_nodes", "container", "modules", "setup") if given[key] != usual[key]]
    if not idle:
        return []
    return [f"cluster.{', cluster.'.join(idle)} do nothing with cluster.launcher=local"]


def _check_slurm(slurm: Slurm) -> None:
    if slurm.time is not None and not slurm_seconds(slurm.time):
        raise UmbelError(
            f"{slurm.time!r} is no time limit",
            where="cluster.slurm.time",
            fix="write '20:00:00' (hours:minutes:seconds) or '4-04' (days-hours), in quotes",
        )
    if slurm.jobs > 1 and slurm.chain == "requeue":
        raise UmbelError(
            f"{slurm.jobs} jobs need a chain, and requeue is one job that comes back",
            where="cluster.slurm.jobs",
            fix="set it to 1, or cluster.slurm.chain to array or dependency",
        )
    if slurm.grace_seconds is not None and slurm.grace_seconds > LONGEST_GRACE:
        raise UmbelError(
            f"sbatch takes at most {LONGEST_GRACE} seconds, not {slurm.grace_seconds}",
            where="cluster.slurm.grace_seconds",
        )
    if slurm.memory_per_device_gb is not None and not 0 < slurm.memory_per_device_gb < float("inf"):
        raise UmbelError("must be a number above 0", where="cluster.slurm.memory_per_device_gb")
    if not _GRES.fullmatch(slurm.gres):
        raise UmbelError(
            f"{slurm.gres!r} is no generic resource",
            where="cluster.slurm.gres",
            fix="write gpu or gpu:a100; how many of them, cluster.devices_per_node says",
        )
    for key in ("partition", "account", "qos", "constraint", "reservation"):
        value = getattr(slurm, key)
        # Slurm's own constraints know & and |.
        if value is not None and not _WORD.fullmatch(
            re.sub(r"[&|]", "", value) if key == "constraint" else value
        ):
            raise UmbelError(f"{value!r} is no name that Slurm knows", where=f"cluster.slurm.{key}")
    for number, node in enumerate(slurm.exclude):
        if not _WORD.fullmatch(node):
            raise UmbelError(f"{node!r} is no node", where=f"cluster.slurm.exclude[{number}]")
    _check_options(slurm.options)


def _check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        where = f"cluster.slurm.options.{name}"
        if not _OPTION.fullmatch(name):
            raise UmbelError(
                "is no option of sbatch", where=where, fix="write its long name without dashes: mail-type"
            )
        if name in OURS:
            raise UmbelError(f"is decided by {OURS[name]}", where=where, fix="drop it")
        if not isinstance(value, str | int | float) or "\n" in str(value):
            raise UmbelError("must be a line of text, a number, true or false", where=where)


def _check_lines(cluster: Cluster) -> None:
    for name, value in cluster.environment.items():
        if not _VARIABLE.fullmatch(name):
            raise UmbelError("is no name of a variable", where=f"cluster.environment.{name}")
        if names_secret(name):
            raise UmbelError(
                "is a secret by its name",
                where=f"cluster.environment.{name}",
                fix="export it where you launch, or keep it in its own tool's file",
            )
        if "\n" in value or "\0" in value:
            raise UmbelError("must be one line", where=f"cluster.environment.{name}")
    for number, module in enumerate(cluster.modules):
        if not _WORD.fullmatch(module):
            raise UmbelError(f"{module!r} is no module", where=f"cluster.modules[{number}]")
    for key in ("scratch", "cache"):
        folder = getattr(cluster, key)
        if folder is not None and not folder.startswith(("/", "~")):
            raise UmbelError(
                f"{folder!r} is not the same place from everywhere",
                where=f"cluster.{key}",
                fix="write a whole path; ${oc.env:SCRATCH} takes one from the environment",
            )


def _check_container(container: Container) -> None:
    if not container.image.strip():
        raise UmbelError("names no image", where="cluster.container.image", fix="name a .sif or .sqsh file")
    for number, mount in enumerate(container.mounts):
        parts = mount.split(":")
        if len(parts) not in (2, 3) or not all(part.startswith("/") for part in parts[:2]) or "," in mount:
            raise UmbelError(
                f"{mount!r} is no mount",
                where=f"cluster.container.mounts[{number}]",
                fix="write host:container, two whole paths; :ro after them for read only",
            )
