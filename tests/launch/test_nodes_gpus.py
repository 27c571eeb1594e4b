"""What the driver tells of devices. No driver is here: a stand-in answers as NVML does, through its names."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from launch.nodes.gpus import gpus

GB = 1 << 30


class Driver:
    """NVML of a node with some devices; one may be lost, one another job's; they tell only their names."""

    def __init__(self, count: int, lost: int | None = None, foreign: int | None = None) -> None:
        self.count, self.lost, self.foreign = count, lost, foreign

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvmlDeviceGet"):
            return self.refuse
        return getattr(pynvml, name)

    def refuse(self, *_: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if index == self.foreign:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetName(self, _: int) -> str:
        return "NVIDIA H100"

    def nvmlDeviceGetUUID(self, index: int) -> str:
        return f"GPU-{index}"

    def nvmlDeviceGetMemoryInfo(self, _: int) -> Any:
        return SimpleNamespace(total=80 * GB, free=79 * GB)


class Talkative(Driver):
    """One that answers every question."""

    def nvmlDeviceGetTotalEccErrors(self, index: int, kind: int, counter: int) -> int:
        assert (kind, counter) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        return index

    def nvmlDeviceGetRemappedRows(self, index: int) -> tuple[int, int, int, int]:
        return 0, 0, index == 1, 0

    def nvmlDeviceGetNvLinkState(self, index: int, link: int) -> int:
        if link >= 18:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return link != index

    def nvmlDeviceGetNvLinkErrorCounter(self, _: int, link: int, kind: int) -> int:
        return int(link == 5 and kind == pynvml.NVML_NVLINK_ERROR_DL_REPLAY)

    def nvmlDeviceGetTemperature(self, index: int, _: int) -> int:
        return 40 + index

    def nvmlDeviceGetCurrentClocksEventReasons(self, index: int) -> int:
        return [pynvml.nvmlClocksEventReasonGpuIdle, pynvml.nvmlClocksEventReasonHwThermalSlowdown][index]


def use(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_device_tells_its_health(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Talkative(2), monkeypatch)
    (first, second), lost = gpus()
    assert (first.name, first.memory, first.free, lost) == ("NVIDIA H100", 80 * GB, 79 * GB, [])
    assert (first.uncorrected, first.remap_pending, first.remap_failed) == (0, False, False)
    assert (first.links, first.link_errors, first.temperature, first.slowed) == (17, 1, 40, [])
    assert (second.uncorrected, second.remap_pending, second.temperature) == (1, True, 41)
    assert second.slowed == ["too hot (hardware)"]


def test_what_a_device_does_not_tell_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Driver(1), monkeypatch)
    (device,), lost = gpus()
    assert lost == []
    assert (device.uncorrected, device.remap_pending, device.links, device.temperature) == (None,) * 4


def test_a_lost_device_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Talkative(3, lost=2), monkeypatch)
    found, lost = gpus()
    assert [device.uuid for device in found] == ["GPU-0", "GPU-1"]
    assert lost == ["device 2: GPU is lost"]


def test_another_jobs_device_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Talkative(3, foreign=2), monkeypatch)
    found, lost = gpus()
    assert ([device.uuid for device in found], lost) == (["GPU-0", "GPU-1"], [])


def test_only_what_a_worker_would_see_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Talkative(2), monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found, _ = gpus()
    assert [device.uuid for device in found] == ["GPU-1"]


def test_without_a_driver_there_is_none() -> None:
    assert gpus() == ([], [])
