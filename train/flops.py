"""Floating-point operations per token, the peaks of known devices, and model FLOPs utilisation."""

from __future__ import annotations

import re

from transformers import PreTrainedConfig

from train.parameters import ParameterCount

DENSE_BF16_TFLOPS = {
    "a100": 312.0,
    "a800": 312.0,
    "a40": 150.0,
    "a30": 165.0,
    "a10": 125.0,
    "h100 pcie": 756.0,
    "h100 nvl": 835.0,
    "h100": 989.0,
    "h800": 989.0,
    "h200 nvl": 835.0,
    "h200": 989.0,
    "gh200": 989.0,
    "b200": 2250.0,
    "l4": 121.0,
    "l40s": 362.0,
    "rtx 3090": 71.0,
    "rtx 4090": 165.0,
    "rtx a6000": 155.0,
    "rtx 6000 ada": 364.0,
    "mi250x": 191.5,
    "mi300x": 1307.0,
    "mi325x": 1307.0,
}
"""Dense bf16 peak in TFLOP/s by a part of the device's name: the vendors' data sheets, which often print
twice as much, with sparsity. Consumer cards: with fp32 accumulation. MI250X: one of its two devices."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by the name CUDA gives it; None for an unknown one or a slice of one."""
    name = re.sub(r"[^a-z0-9]+", " ", device_name.lower())
    if re.search(r"\bmig\b", name):
        return None
    known = [key for key in DENSE_BF16_TFLOPS if re.search(rf"\b{key}\b", name)]
    return DENSE_BF16_TFLOPS[max(known, key=len)] * 1e12 if known else None


def flops_per_token(config: PreTrainedConfig, count: ParameterCount, sequence_length: int) -> float:
    """FLOPs to train on one token: 6 N + 12 · layers · heads · head_dim · sequence_length.

    Chowdhery et al. 2022 (PaLM, arXiv:2204.02311), appendix B: attention counts whole, not its causal half,
    and recomputation does not count. N leaves out tables that are only looked up; a frozen parameter costs
    4, not 6, since it needs no gradient of its own.
    """
    shape = config.get_text_config(decoder=True)
    heads = shape.num_attention_heads
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    frozen = count.total - count.trainable
    trained = max(0, count.matmul - frozen)
    attention = 12.0 * shape.num_hidden_layers * heads * head_dim * sequence_length
    return 4.0 * count.matmul + 2.0 * trained + attention


def mfu(tokens_per_second: float, flops_of_token: float, world_size: int, peak: float) -> float:
    """Model FLOPs utilisation in [0, 1]: useful FLOP/s over what ``world_size`` devices of ``peak`` could do.

    ``tokens_per_second`` is that of the whole run.
    """
    return tokens_per_second * flops_of_token / (world_size * peak)
