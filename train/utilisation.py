"""Model FLOP/s utilisation of a live run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from configs.schema import RunConfig
from train.architecture import model_config
from train.distributed import World
from train.engine import Engine
from train.flops import flops_per_token, mfu, peak_flops
from train.parameters import parameter_count

Utilisation = Callable[[float], float | None]


def utilisation(config: RunConfig, engine: Engine, world: World) -> Utilisation:
    """A function from tokens per second to MFU; to None where the device's peak is not known."""
    peak = _peak(config, world)
    if peak is None:
        return lambda _: None
    shape, count = model_config(config.model), parameter_count(engine.model)
    cost = flops_per_token(shape, count, config.data.sequence_length)
    return lambda tokens_per_second: mfu(tokens_per_second, cost, world.size, peak)


def _peak(config: RunConfig, world: World) -> float | None:
    """Dense bf16 FLOP/s of one device."""
    if config.cluster.peak_tflops:
        return config.cluster.peak_tflops * 1e12
    if world.device.type == "cuda":
        return peak_flops(torch.cuda.get_device_name(world.device))
    return None
