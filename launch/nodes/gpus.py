"""The health of NVIDIA devices, asked of the driver. What a device does not tell is absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from base.devices import Device, visible
from launch.nodes.facts import Gpu

_SLOWED = {
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": "too hot (hardware)",
    "HwPowerBrakeSlowdown": "power brake",
    "SwThermalSlowdown": "too hot",
}
"""Reasons of NVML for a lower clock that no user asked for; idle and a power cap are usual."""

_LINK_ERRORS = ("DL_REPLAY", "DL_RECOVERY", "DL_CRC_FLIT")


def gpus() -> tuple[list[Gpu], list[str]]:
    """The devices that a worker would see, and those that are lost, in the driver's words."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return [], []
    found = visible(list(_readable(pynvml, count)))
    return [_gpu(pynvml, device) for device in found], list(_lost(pynvml, count))


def _lost(pynvml: Any, count: int) -> Iterator[str]:
    for index in range(count):
        try:
            pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_NO_PERMISSION:  # such a one is another job's
                yield f"device {index}: {error}"


def _readable(pynvml: Any, count: int) -> Iterator[Device]:
    for index in range(count):
        handle = _told(pynvml, pynvml.nvmlDeviceGetHandleByIndex, index)
        memory = None if handle is None else _told(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle)
        if memory:
            name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
            yield Device(str(name), int(memory.total), int(memory.free), str(uuid))


def _gpu(pynvml: Any, device: Device) -> Gpu:
    handle = _told(pynvml, pynvml.nvmlDeviceGetHandleByUUID, device.uuid)
    known = Gpu(name=device.name, uuid=device.uuid, memory=device.memory, free=device.free)
    if handle is None:
        return known
    rows = _told(pynvml, pynvml.nvmlDeviceGetRemappedRows, handle)
    links, errors = _links(pynvml, handle)
    ecc = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
    return Gpu(
        name=device.name,
        uuid=device.uuid,
        memory=device.memory,
        free=device.free,
        uncorrected=_told(pynvml, pynvml.nvmlDeviceGetTotalEccErrors, handle, *ecc),
        remap_pending=bool(rows[2]) if rows else None,
        remap_failed=bool(rows[3]) if rows else None,
        links=links,
        link_errors=errors,
        temperature=_told(pynvml, pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        slowed=_slowed(pynvml, handle),
    )


def _links(pynvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """How many are up, and their errors; None without any."""
    states = [
        (link, _told(pynvml, pynvml.nvmlDeviceGetNvLinkState, handle, link))
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS)
    ]
    up = [link for link, state in states if state]
    if all(state is None for _, state in states):
        return None, None
    kinds = [getattr(pynvml, f"NVML_NVLINK_ERROR_{kind}") for kind in _LINK_ERRORS]
    counts = [
        _told(pynvml, pynvml.nvmlDeviceGetNvLinkErrorCounter, handle, link, kind)
        for link in up
        for kind in kinds
    ]
    told = [int(count) for count in counts if count is not None]
    return len(up), sum(told) if told else None


def _slowed(pynvml: Any, handle: Any) -> list[str]:
    reasons = _told(pynvml, pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    return [
        words for name, words in _SLOWED.items() if reasons & getattr(pynvml, f"nvmlClocksEventReason{name}")
    ]


def _told(pynvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer; None from a device or a driver that does not know the question."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None
