"""A small invented state, and saving it by any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoint.arena import ALIGNMENT
from checkpoint.job import Commit, SaveJob, Slot
from checkpoint.retention import Retention
from checkpoint.writer import Fragment, commit, write_share

SLICED = ("master", "exp_avg", "exp_avg_sq")
SAVE_ID = "0123abcd"


class State(NamedTuple):
    """What a run would save: flat fp32 arrays by (parameter, kind), frozen weights, whole buffers.

    ``shapes`` are of what is trained, in ``groups``; ``parameters`` of that and of what is frozen.
    """

    shapes: dict[str, list[int]]
    flat: dict[tuple[str, str], np.ndarray]
    frozen: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    groups: list[list[str]]

    @property
    def parameters(self) -> dict[str, list[int]]:
        return self.shapes | {name: list(values.shape) for name, values in self.frozen.items()}

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for part in (self.flat, self.frozen, self.buffers) for a in part.values())


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
    for name, values in state.frozen.items():
        start, stop = even_cuts(values.size, world_size)[rank]
        data = values.reshape(-1)[start:stop].tobytes()
        fragments.append(Fragment(name, "frozen", start, data, "BF16", (stop - start,)))
    if rank == 0:
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
        "tied": {},
        "loss_scaler": None,
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
        write_share(
            checkpoints, step, SAVE_ID, rank, world_size, share(state, rank, world_size), state.parameters
        )
    return commit(checkpoints, step, SAVE_ID, world_size, facts_of(state, step, world_size, **changes))


def fill(arena: Callable[[int], memoryview], fragments: Sequence[Fragment]) -> list[Slot]:
    """Copy fragments into an arena, which is asked for the bytes it must have, and say where they lie."""
    slots, offset = [], 0
    for one in fragments:
        slots.append(Slot(one.parameter, one.kind, one.start, one.dtype, one.shape, offset))
        offset += -(-one.nbytes // ALIGNMENT) * ALIGNMENT
    view = arena(offset)
    for one, slot in zip(fragments, slots, strict=True):
        if one.nbytes:
            view[slot.offset : slot.offset + one.nbytes] = memoryview(one.data).cast("B")
    return slots


def job_of(
    checkpoints: Path,
    state: State,
    slots: list[Slot],
    rank: int = 0,
    world_size: int = 1,
    step: int = 100,
    save_id: str = SAVE_ID,
    keep_last: int = 3,
    **changes: Any,
) -> SaveJob:
    """One rank's part of saving a state that lies in an arena."""
    facts = facts_of(state, step, world_size, **changes)
    return SaveJob(
        checkpoints=checkpoints,
        step=step,
        save_id=save_id,
        rank=rank,
        world_size=world_size,
        slots=slots,
        parameters=state.parameters,
        total_bytes=state.nbytes,
        commit=None if rank else Commit(facts=facts, retention=Retention(keep_last=keep_last)),
    )
