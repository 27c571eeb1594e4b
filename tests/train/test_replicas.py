"""Replicas that came apart are told; those that did not are left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from base.errors import RunFailed
from support.curves import micro_batches
from support.processes import run_workers
from support.runs import tiny
from support.small_models import ALONE
from train.hooks.replicas import CompareReplicas
from train.loop import StepRecord
from train.position import Position
from train.replicas import CPU_CHUNK, digests, disagreement

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8])
SIZES = st.sampled_from([1, 2, 7, 1000, CPU_CHUNK, CPU_CHUNK + 1, 2 * CPU_CHUNK + 3])
STAGES = [
    ["parallelism=ddp"],
    ["parallelism=zero1", "parallelism.zero_stage=0"],
    ["parallelism=zero1"],
    ["parallelism=zero2", "model.precision=bf16"],
    ["parallelism=zero3"],
]
# So large an embedding ZeRO-3 partitions, the norms it leaves whole.
LARGE = ("schedule.global_batch=8", "model.config.vocab_size=3200")
EMBEDDING, NORM = "transformer.word_embeddings.weight", "transformer.ln_f.weight"
STEPS = 20


# Checksums ----------------------------------------------------------------------------------------------


def numbers(size: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(size, generator=random) * 50).to(dtype)


def integers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    )


@given(DTYPES, SIZES, st.integers(0, 2**31), st.data())
def test_one_flipped_bit_changes_the_checksum(dtype: torch.dtype, size: int, seed: int, data: Any) -> None:
    tensor = numbers(size, dtype, seed)
    kept = tensor.clone()
    before = digests([tensor])
    assert integers(tensor).equal(integers(kept)), "the tensor is only read"
    where, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 8 * tensor.element_size() - 2))
    integers(tensor)[where] ^= 1 << bit
    assert digests([tensor]) != before


@given(SIZES.filter(lambda size: size > 1), st.integers(0, 2**31), st.data())
def test_two_swapped_values_change_the_checksum(size: int, seed: int, data: Any) -> None:
    tensor = numbers(size, torch.float32, seed)
    first, second = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True))
    before = digests([tensor])
    tensor[[first, second]] = tensor[[second, first]]
    assert (digests([tensor]) != before) == (tensor[first] != tensor[second])


def test_two_values_that_swapped_chunks_change_the_checksum() -> None:
    tensor = numbers(2 * CPU_CHUNK, torch.float32, 0)
    before = digests([tensor])
    tensor[[5, CPU_CHUNK + 5]] = tensor[[CPU_CHUNK + 5, 5]]
    assert digests([tensor]) != before


def test_checksums_of_any_shape_and_of_nothing() -> None:
    tensor = numbers(12, torch.float32, 0)
    assert digests([]).tolist() == []
    assert digests([torch.zeros(0)]).tolist() == [0]
    assert digests([tensor.view(3, 4)]) == digests([tensor])
    assert digests([tensor.view(3, 4).t()]) != digests([tensor])


# Several processes ----------------------------------------------------------------------------------------


class Others:
    """A world of which this process is the first; the others' checksums differ from its own by ``rows``."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rank, self.size, self.rows = 0, len(rows) + 1, np.array([[0] * len(rows[0]), *rows])

    def sum(self, values: list[int]) -> list[int]:
        return [self.size * value for value in values]

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        return values[0] + self.rows


def engine_of(model: torch.nn.Module) -> Any:
    config = SimpleNamespace(run=SimpleNamespace(name="demo"))
    return SimpleNamespace(model=model, state=SimpleNamespace(held=list), config=config)


def told(*rows: list[int]) -> str | None:
    world: Any = Others(list(rows))
    return disagreement(engine_of(torch.nn.Linear(2, 1)), world)


def test_the_ranks_that_differ_from_most_are_named() -> None:
    assert told([0, 0]) is None
    assert told([0, 5]) == "bias on rank 1 is not what it is on rank 0"
    assert told([0, 0], [9, 0], [0, 0]) == "weight on rank 2 is not what it is on the other 3"
    assert told([7, 0], [7, 0], [9, 0]) == "weight on rank 0, 3 is not what it is on the other 2"
    assert told([7, 1]) == "weight on rank 1 is not what it is on rank 0 (2 of 2 tensors differ)"


def test_a_world_of_one_has_nothing_to_compare() -> None:
    hook = CompareReplicas(engine_of(torch.nn.Linear(2, 1)), ALONE, 1)
    hook.after_step(at(1))
    assert disagreement(hook.engine, ALONE) is None


def test_the_hook_says_which_steps_are_good() -> None:
    world: Any = Others([[0, 0]])
    hook = CompareReplicas(engine_of(torch.nn.Linear(2, 1)), world, 10)
    hook.after_step(at(10))
    world.rows[1, 0] = 3
    hook.after_step(at(11))
    with pytest.raises(
        RunFailed, match=r"step 20: replicas differ: weight on rank 1 .* after step 10:"
    ) as caught:
        hook.after_step(at(20))
    assert "umbel rollback demo --to STEP" in str(caught.value)
    CompareReplicas(hook.engine, world, 0).after_step(at(20))


def at(step: int) -> StepRecord:
    metrics: Any = None
    return StepRecord(Position(step, step, step), 1, 0.1, metrics, 0.0, 0.0)


def apart(folder: str) -> list[list[str | None]]:
    """In every rank, for each stage: what is told after 20 steps, and of a bit flipped on rank 1 alone."""
    from accelerate.state import AcceleratorState

    from train import distributed
    from train.engine import build_engine

    world, found = None, []
    for stage in STAGES:
        config = tiny(Path(folder), *LARGE, *stage, "parallelism.processes=null")
        world = world or distributed.start(config.cluster)
        engine = build_engine(config, world, 4)
        hook = CompareReplicas(engine, world, 1)
        for step in range(1, STEPS + 1):
            batches, targets = micro_batches(step, world.rank, world.size, 4)
            engine.step(step, batches, targets, 1e-2)
            hook.after_step(at(step))
        parameters = dict(engine.model.named_parameters())
        moments = {
            piece.parameter: piece.views["exp_avg"]
            for piece in engine.state.held()
            if "exp_avg" in piece.views
        }
        nothing = torch.zeros(0)
        flipped = [parameters[EMBEDDING].data, parameters[NORM].data, moments.get(NORM, nothing)]
        found.append([with_flip(tensor if world.rank else nothing, hook) for tensor in flipped])
        AcceleratorState._reset_state(reset_partial_state=True)
    distributed.stop()
    return found


def with_flip(tensor: torch.Tensor, hook: CompareReplicas) -> str | None:
    """What the hook says while the lowest bit of the tensor's last element is another."""
    if tensor.numel():
        integers(tensor.view(-1))[-1] ^= 1
    try:
        hook.after_step(at(STEPS + 1))
    except RunFailed as error:
        return str(error).partition("; ")[0]
    finally:
        if tensor.numel():
            integers(tensor.view(-1))[-1] ^= 1
    return None


@pytest.mark.slow
def test_a_flipped_bit_is_told_and_nothing_else(tmp_path: Path) -> None:
    first, second = run_workers(2, apart, str(tmp_path), timeout=240, gloo=False)
    assert first == second, "every process stops, with the same words"
    embedding, norm, moment = (
        f"step {STEPS + 1}: replicas differ: {label} on rank 1 is not what it is on rank 0"
        for label in (EMBEDDING, NORM, f"{NORM}|exp_avg")
    )
    replicated, partitioned = [embedding, norm, moment], [embedding, norm, None]
    assert first == [replicated, replicated, partitioned, partitioned, [None, norm, None]]
