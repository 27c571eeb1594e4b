"""How many processes a run starts: on this machine, or on the nodes that Slurm gives it."""

from __future__ import annotations

from base.devices import cuda_devices
from base.errors import UmbelError
from configs.schema import RunConfig


def devices_per_node(config: RunConfig) -> int:
    """Processes that one node starts: one per device, or one without any.

    Raises:
        UmbelError: devices are asked for and there are none, or fewer, or nobody says how many.
    """
    if config.cluster.launcher == "slurm":
        from launch.slurm.site import processes_per_node, site

        return processes_per_node(config, site(config.cluster))
    return _here(config)


def world_size(config: RunConfig) -> int:
    """Number of worker processes: ``parallelism.processes``, else nodes × devices per node.

    Raises:
        UmbelError: more processes than CUDA devices, or none where the config asks for them.
    """
    if config.cluster.launcher == "slurm":
        return config.cluster.nodes * devices_per_node(config)
    per_node = _here(config)
    if config.parallelism.processes is None:
        return config.cluster.nodes * per_node
    devices = 0 if config.cluster.device == "cpu" else len(cuda_devices())
    if devices and config.cluster.nodes == 1 and config.parallelism.processes > devices:
        raise UmbelError(
            f"{config.parallelism.processes} processes need as many CUDA devices, but {devices} are visible",
            where="parallelism.processes",
            fix=f"set it to {devices}, or cluster.device=cpu",
        )
    return config.parallelism.processes


def _here(config: RunConfig) -> int:
    wanted = config.cluster.devices_per_node
    if config.cluster.device == "cpu":
        return wanted or 1
    count = len(cuda_devices())
    if config.cluster.device == "cuda" and count == 0:
        raise UmbelError(
            "no CUDA device is visible on this machine", where="cluster.device", fix="set it to auto or cpu"
        )
    if wanted is not None and count and wanted > count:
        raise UmbelError(
            f"{wanted} are asked for, but {count} CUDA devices are visible",
            where="cluster.devices_per_node",
            fix=f"set it to at most {count}",
        )
    return wanted or max(1, count)
