"""Processes: who this one is, and the few collectives that run beside the model's own."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from base.errors import UmbelError
from configs.schema import Cluster


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None  # gloo, for small facts in host memory; None in a world of one

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.control is not None:
            dist.barrier(self.control)

    def sum(self, values: list[int]) -> list[int]:
        """Sum over all processes, in host memory: no device waits for it."""
        if self.control is None:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, group=self.control)
        return [int(value) for value in tensor]

    def sum_floats(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a float64 host tensor over all processes."""
        if self.control is not None:
            dist.all_reduce(values, group=self.control)
        return values

    def sum_array(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sum of equally shaped arrays over all processes."""
        total = torch.from_numpy(values).clone()
        if self.control is not None:
            dist.all_reduce(total, group=self.control)
        return total.numpy()

    def first(self, value: int) -> int:
        """What the first process says."""
        return self.sum([value if self.is_first else 0])[0]


def start(cluster: Cluster, timeout: timedelta = timedelta(minutes=30)) -> World:
    """Join the process group that torchrun's or Slurm's environment describes; alone without one.

    Raises:
        UmbelError: CUDA asked for and not there, or the rendezvous port is taken.
    """
    _translate_slurm()
    rank, local_rank, size = (_env(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    device = _device(cluster, local_rank or 0)
    if size is None:
        _pretend_launcher()
        rank, local_rank, size = 0, 0, 1
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", rank=rank or 0, world_size=size, timeout=timeout
        )
    except dist.DistNetworkError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UmbelError(
            f"cannot be used for the rendezvous ({str(error).splitlines()[0]})",
            where=address,
            fix="set MASTER_PORT to a free port",
        ) from error
    control = dist.new_group(backend="gloo", timeout=timeout) if size > 1 else None
    return World(rank or 0, size, device, control)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(cluster: Cluster, local_rank: int) -> torch.device:
    if cluster.device == "cpu" or (cluster.device == "auto" and not torch.cuda.is_available()):
        os.environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UmbelError("no CUDA device is visible", where="cluster.device", fix="set it to cpu or auto")
    # With one task per GPU each process may see only its own device.
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    # DeepSpeed takes its device from here.
    os.environ["LOCAL_RANK"] = str(device.index)
    torch.cuda.set_device(device)
    return device


def _translate_slurm() -> None:
    """Under a bare srun, Slurm's variables say what torchrun's would. A batch script is no such step."""
    if "RANK" in os.environ or "SLURM_STEP_ID" not in os.environ or "SLURM_PROCID" not in os.environ:
        return
    for ours, theirs in (("RANK", "PROCID"), ("WORLD_SIZE", "NTASKS"), ("LOCAL_RANK", "LOCALID")):
        os.environ[ours] = os.environ[f"SLURM_{theirs}"]
    if "MASTER_ADDR" not in os.environ:
        if os.environ.get("SLURM_NNODES", "1") != "1":
            raise UmbelError(
                "is not set", where="MASTER_ADDR", fix="export the first node's address before srun"
            )
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    # Any port that all tasks agree on and other jobs on the node do not.
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000))


def _pretend_launcher() -> None:
    """DeepSpeed reads these variables even in a world of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


def _env(name: str) -> int | None:
    value = os.environ.get(name)
    return int(value) if value else None
