"""What a run gets of the site's nodes: a device's share of their cores and memory."""

from __future__ import annotations

from dataclasses import dataclass

from base.errors import UmbelError, did_you_mean
from configs.schema import Cluster, RunConfig
from launch.slurm import queries
from launch.slurm.ask import has_slurm
from launch.slurm.queries import Node, Partition

_CONFIGURED = 64
"""MiB; where a site does not count memory, every node has 1."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process may take of its node: cores, and MiB of memory, None where the site counts none."""

    cpus: int
    memory: int | None


@dataclass(frozen=True, kw_only=True)
class Site:
    """The partition that a run goes to, and its nodes that work, those the profile excludes left out."""

    partition: Partition
    nodes: list[Node]

    def devices_per_node(self, cluster: Cluster) -> int:
        """The devices that the best of its nodes have.

        Raises:
            UmbelError: none has any.
        """
        most = max((node.devices(cluster.slurm.gres) for node in self.nodes), default=0)
        if most == 0:
            raise UmbelError(
                f"no node of partition {self.partition.name} has any {cluster.slurm.gres}",
                where="cluster.slurm.gres",
                fix="name what sinfo -o '%P %G' shows, or set cluster.device=cpu",
            )
        return most

    def share(self, cluster: Cluster, processes: int) -> Share | None:
        """The share that is there on every node with so many devices; None where none has."""
        if not takes_devices(cluster):
            shares = [_part(node, processes) for node in self.nodes if node.cpus >= processes]
        else:
            gres = cluster.slurm.gres
            fit = [node for node in self.nodes if node.devices(gres) >= processes]
            shares = [_part(node, node.devices(gres)) for node in fit]
        if not shares:
            return None
        memory = [share.memory for share in shares if share.memory is not None]
        return Share(
            cpus=min(share.cpus for share in shares),
            memory=min(memory) if len(memory) == len(shares) else None,
        )


def takes_devices(cluster: Cluster) -> bool:
    """Whether devices are asked of Slurm: on the CPU only where the profile counts them."""
    return cluster.device != "cpu" or cluster.devices_per_node is not None


def site(cluster: Cluster) -> Site | None:
    """Ask Slurm; None where there is none to ask.

    Raises:
        UmbelError: there is no such partition, or Slurm does not answer.
    """
    if not has_slurm():
        return None
    partition = _partition(cluster.slurm.partition, queries.partitions())
    left_out = {name for entry in cluster.slurm.exclude for name in queries.hostnames(entry)}
    nodes = [node for node in queries.nodes(partition.name) if node.works and node.name not in left_out]
    return Site(partition=partition, nodes=nodes)


def processes_per_node(config: RunConfig, known: Site | None) -> int:
    """Worker processes on each node: one per device, or what ``parallelism.processes`` leaves to it.

    Raises:
        UmbelError: they do not divide evenly, or nobody says how many devices a node has.
    """
    cluster, processes = config.cluster, config.parallelism.processes
    if processes is not None:
        if processes % cluster.nodes:
            raise UmbelError(
                f"{processes} processes do not divide evenly among {cluster.nodes} nodes",
                where="parallelism.processes",
                fix="set parallelism=ddp or zero1 to zero3, and cluster.devices_per_node",
            )
        return processes // cluster.nodes
    if cluster.devices_per_node is not None:
        return cluster.devices_per_node
    if cluster.device == "cpu":
        return 1
    if known is None:
        raise UmbelError(
            "is not set, and there is no Slurm here to ask", where="cluster.devices_per_node", fix="set it"
        )
    return known.devices_per_node(cluster)


def _partition(wanted: str | None, known: list[Partition]) -> Partition:
    """Of several (``a,b``: whichever starts first) the first."""
    if wanted is not None:
        names = {partition.name: partition for partition in known}
        for name in wanted.split(","):
            if name not in names:
                raise UmbelError(
                    f"no partition '{name}' here",
                    where="cluster.slurm.partition",
                    fix=did_you_mean(name, names),
                )
        return names[wanted.split(",")[0]]
    usual = next((partition for partition in known if partition.is_default), None)
    if usual is None:
        names_here = ", ".join(partition.name for partition in known)
        raise UmbelError(
            "this site has no default", where="cluster.slurm.partition", fix=f"set it to one of: {names_here}"
        )
    return usual


def _part(node: Node, parts: int) -> Share:
    memory = node.memory if node.memory >= _CONFIGURED else None
    return Share(cpus=max(1, node.cpus // parts), memory=memory // parts if memory is not None else None)
