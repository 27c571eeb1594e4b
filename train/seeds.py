"""Random draws that depend on what is computed, never on where."""

from __future__ import annotations

import hashlib


def derive(seed: int, *parts: object) -> int:
    """A 63-bit seed for one purpose, from the run's seed and the parts that name the purpose."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_draws(seed: int, step: int, first_slot: int) -> None:
    """Seed every generator that dropout draws from, for one micro-batch.

    ``first_slot`` is the global slot of the micro-batch's first sequence, so the draws do not depend on
    which process computes it.
    """
    import torch

    torch.manual_seed(derive(seed, "draws", step, first_slot))
