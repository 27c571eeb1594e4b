"""This machine's accelerators, asked of the driver: neither torch nor CUDA is started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Device:
    """One accelerator; sizes in bytes."""

    name: str
    memory: int
    free: int
    uuid: str = ""


def cuda_devices() -> list[Device]:
    """The NVIDIA devices that a worker would see, after ``CUDA_VISIBLE_DEVICES``; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        found = [_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    return visible(found)


def visible(devices: list[Device]) -> list[Device]:
    """The devices that ``CUDA_VISIBLE_DEVICES`` leaves; as for CUDA, an unknown entry ends the list."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return devices
    chosen: list[Device] = []
    for entry in filter(None, (part.strip() for part in wanted.split(","))):
        named = devices[int(entry) : int(entry) + 1] if entry.isdigit() else _by_uuid(devices, entry)
        if not named:
            break
        chosen += named[:1]
    return chosen


def _by_uuid(devices: list[Device], entry: str) -> list[Device]:
    return [device for device in devices if device.uuid.startswith(entry)]


def _device(pynvml: Any, index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
    return Device(_text(name), int(memory.total), int(memory.free), _text(uuid))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
