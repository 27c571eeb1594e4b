"""What a run asks of Slurm, all in one place: the script is a function of it and of nothing else."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Cluster, RunConfig
from launch.slurm.site import Share
from record.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Request:
    """One job, or one chain of equal jobs. Paths are whole; ``grace`` in seconds.

    ``share`` is what a process takes of its node, or None: the site decides. ``code`` is the snapshot that
    runs, ``python`` the interpreter on the nodes.
    """

    name: str
    folder: Path
    code: Path
    python: str
    cluster: Cluster
    processes_per_node: int
    share: Share | None
    grace: int

    @property
    def nodes(self) -> int:
        """Nodes that are asked for, spares included."""
        return self.cluster.nodes + self.cluster.spare_nodes

    @property
    def cpus(self) -> int | None:
        """Cores of one process; None: the site decides."""
        given = self.cluster.slurm.cpus_per_device
        if given is None and self.share is not None:
            return self.share.cpus
        return given

    @property
    def memory(self) -> int | None:
        """MiB of one process; None: the site decides."""
        given = self.cluster.slurm.memory_per_device_gb
        if given is None:
            return self.share.memory if self.share is not None else None
        return round(1024 * given)


def request(
    config: RunConfig, *, processes_per_node: int, share: Share | None, grace: int, code: Path
) -> Request:
    """A run's request, to be worked by this interpreter with the code in ``code``."""
    folder = RunFolder.of(config)
    return Request(
        name=folder.name,
        folder=folder.path.resolve(),
        code=code.absolute(),
        python=sys.executable,
        cluster=config.cluster,
        processes_per_node=processes_per_node,
        share=share,
        grace=grace,
    )
