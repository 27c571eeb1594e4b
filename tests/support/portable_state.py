"""A small invented state, and saving it by any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoint.writer import Fragment, commit, write_share

SLICED = ("master", "exp_avg", "exp_avg_sq")


class State(NamedTuple):
    """What a run would save: flat fp32 arrays by (parameter, kind), whole frozen weights and buffers."""

    shapes: dict[str, list[int]]
    flat: dict[tuple[str, str], np.ndarray]
    frozen: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    groups: list[list[str]]


def make_state(seed: int = 0, shapes: dict[str, list[int]] | None = None) -> State:
    random = np.random.default_rng(seed)
    shapes = shapes or {"wte.weight": [7, 3], "h.0.bias": [5], "scale": []}
    flat = {
        (name, kind): random.standard_normal(int(np.prod(shape)), dtype=np.float32)
        for name, shape in shapes.items()
        for kind in SLICED
    }
    # bf16 of an odd count: whatever follows it in a file would lie unaligned.
    frozen = {
        "base.weight": random.integers(0, 1 << 16, (4, 3), dtype=np.uint16),
        "base.bias": random.integers(0, 1 << 16, 5, dtype=np.uint16),
    }
    buffers = {"rotary.inv_freq": random.standard_normal(3), "position_ids": np.arange(4).reshape(1, 4)}
    names = sorted(shapes)
    return State(shapes, flat, frozen, buffers, [names[:1], names[1:]])


def even_cuts(numel: int, world_size: int) -> list[tuple[int, int]]:
    share = -(-numel // world_size)
    return [(min(r * share, numel), min((r + 1) * share, numel)) for r in range(world_size)]


def share_of(state: State, rank: int, world_size: int) -> list[Fragment]:
    """What one rank owns when every tensor is cut evenly; rank 0 has what is whole."""
    fragments = []
    for (name, kind), values in state.flat.items():
        start, stop = even_cuts(values.size, world_size)[rank]
        fragments.append(Fragment(name, kind, start, values[start:stop], "F32", (stop - start,)))
    if rank == 0:
        fragments += [Fragment(n, "frozen", 0, a.tobytes(), "BF16", a.shape) for n, a in state.frozen.items()]
        dtypes = {"float64": "F64", "int64": "I64"}
        fragments += [
            Fragment(n, "buffer", 0, a.data, dtypes[a.dtype.name], a.shape) for n, a in state.buffers.items()
        ]
    return fragments


def facts_of(state: State, step: int, world_size: int, **changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "format_version": 1,
        "run_id": "run-1",
        "run_name": "demo",
        "step": step,
        "sequences": 8 * step,
        "tokens": 1024 * step,
        "parent": None,
        "config_fingerprint": "c" * 64,
        "data_fingerprint": "d" * 64,
        "groups": [
            {"names": names, "step": step, "hyperparameters": {"lr": 1e-3, "betas": (0.9, 0.95)}}
            for names in state.groups
        ],
        "software": {"umbel": "0.1.0"},
        "topology": {"world_size": world_size, "zero_stage": 2, "engine": "deepspeed"},
    }
    return facts | changes


def save(
    checkpoints: Path,
    state: State,
    step: int = 100,
    world_size: int = 2,
    share: Callable[[State, int, int], Sequence[Fragment]] = share_of,
    **changes: Any,
) -> Path:
    for rank in range(world_size):
        write_share(checkpoints, step, rank, world_size, share(state, rank, world_size), state.shapes)
    return commit(checkpoints, step, world_size, facts_of(state, step, world_size, **changes))
