"""Memory of one process by part.

Weights and optimizer follow from counting bytes (Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054, section 3;
what is kept and where: DeepSpeed 0.19 runtime/zero/stage_1_and_2.py and stage3.py); what a micro-batch takes
is rehearsed (`train.rehearse`). Sizes are bytes; CUDA's own context and fragmentation are the tenth that
`train.micro_batch` leaves free.
"""

from __future__ import annotations

import dataclasses

import psutil
import torch

from base.devices import cuda_devices
from base.files import human_bytes
from configs.schema import Parallelism, RunConfig
from train.model import meta_model
from train.parameters import ParameterCount, parameter_count, parameter_shape
from train.rehearse import Rehearsal, rehearse

USABLE = 0.9
"""Share of a device's memory that a plan may fill."""

REDUCE_BUCKET = 500_000_000
"""Elements of DeepSpeed's reduction buffer (``reduce_bucket_size``) at most: its own default."""

LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered, its default ``stage3_max_live_parameters``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak bytes on the device of one process by part, and what it keeps in host memory beside that.

    ``snapshot`` is the copy of its share of the state that an asynchronous checkpoint is written from. On the
    CPU it lies in the same memory as the rest; beside a CUDA device it is part of ``host``, with what is
    offloaded.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    working: int
    buffers: int
    snapshot: int = 0
    host: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """On the device; they add up to `total`."""
        return {name: size for name, size in dataclasses.asdict(self).items() if name != "host"}

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def told(self) -> str:
        """``parameters 1.0 GiB + …``, largest first."""
        parts = sorted(self.parts.items(), key=lambda part: -part[1])
        return " + ".join(f"{name} {human_bytes(size)}" for name, size in parts if size)


def estimate(config: RunConfig, world_size: int, micro_batch: int) -> Memory:
    """Memory of one process of ``world_size`` with ``micro_batch`` sequences at a time."""
    zero = config.parallelism.zero_stage > 0
    memory = _zero(config, world_size, micro_batch) if zero else _torch(config, world_size, micro_batch)
    if not config.checkpoint.asynchronous:
        return memory
    copy = -(-state_bytes(config, parameter_count(meta_model(config.model))) // world_size)
    if runs_on_cpu(config):
        return dataclasses.replace(memory, snapshot=copy)
    return dataclasses.replace(memory, host=memory.host + copy)


def state_bytes(config: RunConfig, count: ParameterCount) -> int:
    """Size of the state that a checkpoint holds, without headers and buffers.

    fp32 weight and two moments of what is trained; frozen weights as they are in memory, unless they came
    from a pretrained model.
    """
    frozen = 0 if config.model.pretrained else count.total - count.trainable
    return 12 * count.trainable + _weight_bytes(config) * frozen


def device_memory(config: RunConfig, processes: int | None = None) -> int:
    """Bytes that one process may use: ``cluster.memory_gb`` (GiB), or the smallest CUDA device's.

    On the CPU a process has its share of the free host memory among ``processes`` on this machine.
    """
    if config.cluster.memory_gb is not None:
        return int(config.cluster.memory_gb * 2**30)
    devices = [] if config.cluster.device == "cpu" else [device.memory for device in cuda_devices()]
    if devices:
        return min(devices)
    return psutil.virtual_memory().available // max(1, processes or config.parallelism.processes or 1)


def runs_on_cpu(config: RunConfig) -> bool:
    """Whether the run computes on the CPU; with ``cluster.memory_gb``, ``auto`` means devices elsewhere."""
    cluster = config.cluster
    if cluster.device != "auto":
        return cluster.device == "cpu"
    return cluster.memory_gb is None and not cuda_devices()


def _torch(config: RunConfig, world_size: int, micro_batch: int) -> Memory:
    """fp32 weights that are their own master copy; bf16 is autocast."""
    count = parameter_count(meta_model(config.model))
    gradients = 4 * count.trainable
    pass_ = _pass(config, micro_batch, torch.float32)
    # With buckets or accumulation the gradients are there all the time; else only as they are finished.
    resident = world_size > 1 or config.schedule.global_batch > micro_batch
    working = pass_.working
    if not resident:
        working = max(0, pass_.working_with_gradients - gradients)
    return Memory(
        parameters=4 * count.total,
        gradients=gradients,
        optimizer=8 * count.trainable,
        activations=pass_.activations,
        loss=pass_.loss,
        working=working,
        buffers=0,
    )


def _zero(config: RunConfig, world_size: int, micro_batch: int) -> Memory:
    """bf16 weights, fp32 master weights, moments and gradients, partitioned from ZeRO stage to stage."""
    parallelism, bf16 = config.parallelism, config.model.precision == "bf16"
    meta = meta_model(config.model)
    count = parameter_count(meta)
    weight = _weight_bytes(config)
    stage = parallelism.zero_stage
    # Stage 3 keeps no second copy of weights that are fp32 already; stages 1 and 2 clone their partition.
    master = 0 if stage == 3 and not bf16 else 4
    parts = {
        "parameters": weight * count.total // (world_size if stage == 3 else 1),
        "gradients": 4 * count.trainable // (world_size if stage >= 2 else 1),
        "optimizer": (master + 8) * count.trainable // world_size,
    }
    host = _offloaded(parallelism, parts)
    largest = max(parameter_shape(parameter).numel() for parameter in meta.parameters())
    gathered = min(count.total, max(LIVE_PARAMETERS, largest)) if stage == 3 and world_size > 1 else 0
    bucket = min(REDUCE_BUCKET, count.trainable)
    pass_ = _pass(config, micro_batch, torch.bfloat16 if bf16 else torch.float32)
    return Memory(
        **parts,
        activations=pass_.activations,
        loss=pass_.loss,
        working=pass_.working,
        buffers=4 * bucket + weight * gathered,
        host=host,
    )


def _weight_bytes(config: RunConfig) -> int:
    """Of one element of the model's weights: ZeRO's are bf16 beside their master copies."""
    return 2 if config.model.precision == "bf16" and config.parallelism.zero_stage > 0 else 4


def _offloaded(parallelism: Parallelism, parts: dict[str, int]) -> int:
    """Move what is offloaded out of ``parts``; returns its bytes."""
    moved = ["optimizer", "gradients"] if parallelism.offload_optimizer else []
    moved += ["parameters"] if parallelism.offload_parameters else []
    host = sum(parts[name] for name in moved)
    parts.update(dict.fromkeys(moved, 0))
    return host


def _pass(config: RunConfig, micro_batch: int, dtype: torch.dtype) -> Rehearsal:
    autocast = config.model.precision == "bf16" and config.parallelism.engine == "torch"
    return rehearse(
        config.model,
        micro_batch,
        config.data.sequence_length,
        dtype=dtype,
        autocast=autocast,
        cuda=not runs_on_cpu(config),
        masked=config.data.intra_document_mask,
    )
