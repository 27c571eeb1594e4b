"""How many processes a run starts on this machine."""

from __future__ import annotations

from base.devices import cuda_devices
from base.errors import UmbelError
from configs.schema import RunConfig


def devices_per_node(config: RunConfig) -> int:
    """Processes that one node starts: one per CUDA device, or one without any.

    Raises:
        UmbelError: ``cluster.device=cuda`` and there is none.
    """
    if config.cluster.device == "cpu":
        return 1
    count = len(cuda_devices())
    if config.cluster.device == "cuda" and count == 0:
        raise UmbelError(
            "no CUDA device is visible on this machine", where="cluster.device", fix="set it to auto or cpu"
        )
    return max(1, count)


def world_size(config: RunConfig) -> int:
    """Number of worker processes: ``parallelism.processes``, else nodes × devices per node.

    Raises:
        UmbelError: more processes than CUDA devices, or none where the config asks for them.
    """
    per_node = devices_per_node(config)
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
