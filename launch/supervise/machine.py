"""Facts of a node, for its report: load, memory, shared memory, file systems, devices."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from launch.supervise.quota import quota_shares

Facts = dict[str, Any]
SECONDS = 10.0
"""Between two looks."""

QUOTA_SECONDS = 300.0


class Machine:
    """Looks at the node now and then, in a thread: a dead file system or driver holds up whoever asks it.

    Args:
        places: file systems to look at, by a name for them.
    """

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = places
        self._slow: Facts = {}
        self._quotas: dict[Path, tuple[float, dict[str, float]]] = {}
        self._looked = time.monotonic()
        threading.Thread(target=self._look, name="machine", daemon=True).start()

    def facts(self) -> Facts:
        """The newest. ``stuck``: for how many seconds the last look has not come back, where that is long."""
        age = time.monotonic() - self._looked
        stuck = {"stuck": round(age)} if age > 3 * SECONDS else {}
        return {**quick_facts(), **self._slow, **stuck}

    def _look(self) -> None:
        while True:
            slow: Facts = {"disks": {}, "devices": []}
            for name, path in self._places.items():
                with contextlib.suppress(OSError):
                    slow["disks"][name] = self._disk(path)
            with contextlib.suppress(Exception):  # a driver's library may raise anything
                slow["devices"] = device_facts()
            self._slow, self._looked = slow, time.monotonic()
            time.sleep(SECONDS)

    def _disk(self, path: Path) -> Facts:
        """Quotas more seldom: their tools ask servers."""
        asked, quota = self._quotas.get(path, (-QUOTA_SECONDS, {}))
        if time.monotonic() - asked >= QUOTA_SECONDS:
            quota = quota_shares(path) if path.exists() else {}
            self._quotas[path] = time.monotonic(), quota
        return {**disk_facts(path), **({"quota": quota} if quota else {})}


def quick_facts() -> Facts:
    """What the kernel knows at once; sizes in bytes."""
    memory = psutil.virtual_memory()
    facts = {"load": os.getloadavg()[0], "memory": memory.total, "memory_available": memory.available}
    with contextlib.suppress(OSError):
        shared = os.statvfs("/dev/shm")
        facts["shared_available"] = shared.f_bavail * shared.f_frsize
    return facts


def disk_facts(path: Path) -> Facts:
    """Bytes and inodes that are used, of those this user can have at all; of the nearest folder there is."""
    found = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    disk = os.statvfs(found)
    used, inodes = disk.f_blocks - disk.f_bfree, disk.f_files - disk.f_ffree
    return {
        "path": str(found),
        "bytes": (used + disk.f_bavail) * disk.f_frsize,
        "bytes_used": used * disk.f_frsize,
        "inodes": max(0, inodes + disk.f_favail),  # 0: the file system makes them as it needs them
        "inodes_used": max(0, inodes),
    }


def device_facts() -> list[Facts]:
    """Of each NVIDIA device: what tells a failing or slowed one, as far as the driver says it."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return [_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    finally:
        nvml.nvmlShutdown()


def _device(nvml: Any, index: int) -> Facts:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    asked: dict[str, Callable[[], Any]] = {
        "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "clock": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "power": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "throttled": lambda: _reasons(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        "uncorrected": lambda: nvml.nvmlDeviceGetTotalEccErrors(
            handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
        "remapping": lambda: bool(nvml.nvmlDeviceGetRemappedRows(handle)[2]),
    }
    facts: Facts = {"index": index}
    for name, ask in asked.items():
        with contextlib.suppress(nvml.NVMLError):
            facts[name] = ask()
    return facts


def _reasons(nvml: Any, mask: int) -> list[str]:
    """Why the clock is lower than it might be, those reasons left out that are no fault."""
    faults = {
        "heat": nvml.nvmlClocksThrottleReasonSwThermalSlowdown
        | nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hardware": nvml.nvmlClocksThrottleReasonHwSlowdown,
        "power brake": nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    }
    return [name for name, bits in faults.items() if mask & bits]
