from __future__ import annotations

import pytest

from base.devices import Device, cuda_devices, visible

FOUR = [Device(f"GPU {index}", 80 << 30, 79 << 30, f"GPU-{index}a") for index in range(4)]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("", []),
        ("-1", []),
        ("2", ["GPU 2"]),
        ("3,0", ["GPU 3", "GPU 0"]),
        ("0,-1,2", ["GPU 0"]),
        ("9", []),
        ("GPU-1", ["GPU 1"]),
        ("0,GPU-9,2", ["GPU 0"]),
    ],
)
def test_visible_devices(monkeypatch: pytest.MonkeyPatch, wanted: str, names: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert [device.name for device in visible(FOUR)] == names


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert cuda_devices() == []
