from __future__ import annotations

import pytest

from base.devices import Device
from base.errors import UmbelError
from configs.compose import compose
from launch import devices
from launch.devices import world_size

FOUR = [Device(f"GPU {index}", 80 << 30, 79 << 30) for index in range(4)]


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_devices", lambda: FOUR)


@pytest.fixture
def none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_devices", list)


@pytest.mark.parametrize("preset", ["ddp", "zero1", "zero3"])
@pytest.mark.usefixtures("none")
def test_one_process_without_devices(preset: str) -> None:
    assert world_size(compose([f"parallelism={preset}"])) == 1


@pytest.mark.usefixtures("four")
def test_one_process_per_device() -> None:
    assert world_size(compose(["parallelism=zero3"])) == 4
    assert world_size(compose(["parallelism=zero3", "cluster.nodes=2"])) == 8
    assert world_size(compose(["parallelism=zero3", "cluster.device=cpu"])) == 1
    assert world_size(compose(["parallelism=zero3", "parallelism.processes=2"])) == 2


@pytest.mark.usefixtures("four")
def test_more_processes_than_devices() -> None:
    with pytest.raises(UmbelError, match="8 processes need as many CUDA devices, but 4 are visible"):
        world_size(compose(["parallelism=zero3", "parallelism.processes=8"]))
    assert world_size(compose(["parallelism=zero3", "parallelism.processes=8", "cluster.device=cpu"])) == 8


@pytest.mark.usefixtures("none")
def test_cuda_wanted_and_missing() -> None:
    with pytest.raises(UmbelError, match="no CUDA device is visible"):
        world_size(compose(["parallelism=zero3", "cluster.device=cuda"]))
    with pytest.raises(UmbelError, match="no CUDA device"):
        world_size(compose(["parallelism=single", "cluster.device=cuda"]))


@pytest.mark.usefixtures("four")
def test_fewer_devices_than_there_are_may_be_used() -> None:
    assert world_size(compose(["parallelism=zero3", "cluster.devices_per_node=2"])) == 2
    with pytest.raises(UmbelError, match="5 are asked for, but 4 CUDA devices are visible"):
        world_size(compose(["parallelism=zero3", "cluster.devices_per_node=5"]))


@pytest.mark.usefixtures("four")
def test_a_job_has_the_devices_of_its_nodes_and_not_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    on_slurm = ("cluster=slurm", "cluster.nodes=2", "parallelism=zero3")
    assert world_size(compose([*on_slurm, "cluster.devices_per_node=8"])) == 16
    assert world_size(compose([*on_slurm, "cluster.device=cpu"])) == 2
    assert world_size(compose([*on_slurm, "parallelism.processes=8"])) == 8
    with pytest.raises(UmbelError, match="4 processes do not divide evenly among 3 nodes"):
        world_size(compose([*on_slurm, "cluster.nodes=3", "parallelism.processes=4"]))
    with pytest.raises(
        UmbelError, match=r"cluster\.devices_per_node: is not set, and there is no Slurm here"
    ):
        world_size(compose([*on_slurm]))
