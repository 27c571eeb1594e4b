"""This machine's accelerators, found without importing torch."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from typing import Any

from base.errors import UmbelError
from configs.schema import RunConfig


@dataclass(frozen=True)
class Device:
    """One accelerator; sizes in bytes."""

    name: str
    memory: int
    free: int


def cuda_devices() -> list[Device]:
    """The NVIDIA devices that a worker would see, after ``CUDA_VISIBLE_DEVICES``; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    with contextlib.suppress(pynvml.NVMLError):
        return _visible([_device(index) for index in range(pynvml.nvmlDeviceGetCount())])
    return []


def _device(index: int) -> Device:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name, memory = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(name if isinstance(name, str) else name.decode(), int(memory.total), int(memory.free))


def _visible(devices: list[Device]) -> list[Device]:
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return devices
    chosen = []
    for entry in filter(None, (part.strip() for part in wanted.split(","))):
        if not entry.isdigit():  # a UUID, or -1 which ends the list
            if entry.startswith("-"):
                break
            chosen.append(devices[0])
        elif int(entry) < len(devices):
            chosen.append(devices[int(entry)])
    return chosen if devices else []


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
    if config.parallelism.processes is None:
        return config.cluster.nodes * devices_per_node(config)
    devices = 0 if config.cluster.device == "cpu" else len(cuda_devices())
    if devices and config.cluster.nodes == 1 and config.parallelism.processes > devices:
        raise UmbelError(
            f"{config.parallelism.processes} processes need as many CUDA devices, but {devices} are visible",
            where="parallelism.processes",
            fix=f"set it to {devices}, or cluster.device=cpu",
        )
    return config.parallelism.processes


def describe(devices: list[Device]) -> list[dict[str, Any]]:
    """Plain data for JSON."""
    return [asdict(device) for device in devices]
