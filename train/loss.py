"""The loss: a sum over targets, divided once by the global count."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from data.stream import IGNORED


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of cross-entropies in nats, in fp32.

    Args:
        logits: [batch, sequence, vocabulary], any float dtype.
        labels: [batch, sequence], the target of each position, or `data.stream.IGNORED`.
    """
    return F.cross_entropy(
        logits.float().view(-1, logits.size(-1)), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )
