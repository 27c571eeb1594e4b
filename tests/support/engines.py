"""Engines for the tests of their state: of any topology, on a small model, stepped, saved and compared."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

from support.curves import VOCABULARY, micro_batches

STEPS, MORE = 3, 5
"""Updates before the save, and after it."""

SEQUENCES = 6  # a batch that 1, 2 and 3 processes share evenly
SAVE_ID = "0a1b2c3d"
ENGINES: dict[str, dict[str, Any]] = {
    "torch": {"engine": "torch"},
    "zero0": {"engine": "deepspeed"},
    "zero1": {"engine": "deepspeed", "zero_stage": 1},
    "zero2": {"engine": "deepspeed", "zero_stage": 2},
    "zero3": {"engine": "deepspeed", "zero_stage": 3},
    "zero1_offload": {"engine": "deepspeed", "zero_stage": 1, "offload_optimizer": True},
    "zero2_offload": {"engine": "deepspeed", "zero_stage": 2, "offload_optimizer": True},
    "zero3_offload": {
        "engine": "deepspeed",
        "zero_stage": 3,
        "offload_optimizer": True,
        "offload_parameters": True,
    },
}
"""Keys of `parallelism`."""

# Sizes that no world size divides. The norms of queries and keys are of a head's size: of two elements, a
# third rank owns none.
MIXED = {
    "hidden_size": 15,
    "intermediate_size": 21,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "vocab_size": VOCABULARY + 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
ADAPTED = {"hidden_size": 33, "n_layer": 2, "n_head": 3, "vocab_size": VOCABULARY + 1}


class Topology(NamedTuple):
    """An engine of `ENGINES` on so many processes."""

    engine: str
    world: int

    def __str__(self) -> str:
        return f"{self.engine}x{self.world}"


def save(engine: Any, checkpoints: Path) -> Path:
    """A checkpoint of the live state, by the parts that `train.saving` is made of."""
    from checkpoint.writer import commit, write_share
    from train.facts import optimizer_facts
    from train.portable import fragments, small_fragments, stored_shapes

    world, shapes = engine.world, stored_shapes(engine.model, with_frozen=True)
    pieces = [*fragments(engine, with_frozen=True), *small_fragments(engine)]
    write_share(checkpoints, STEPS, SAVE_ID, world.rank, world.size, pieces, shapes)
    world.barrier()
    facts = {
        **dict.fromkeys(("run_id", "run_name", "config_fingerprint", "data_fingerprint"), "exchange"),
        "step": STEPS,
        "sequences": STEPS * SEQUENCES,
        "tokens": 0,
        "parent": None,
        "software": {},
        "topology": {"world_size": world.size, "zero_stage": 0, "engine": "torch"},
        **optimizer_facts(engine),
    }
    if world.is_first:
        commit(checkpoints, STEPS, SAVE_ID, world.size, facts)
    world.barrier()
    return checkpoints / f"step-{STEPS:08d}"


def differences(a: Path, b: Path) -> list[str]:
    """Tensors and facts of two checkpoints that differ by as much as a bit, and what makes it no test."""
    from checkpoint.reader import StateReader

    kinds = ("master", "exp_avg", "exp_avg_sq", "frozen", "buffer")
    with StateReader(a) as one, StateReader(b) as other:
        found = [f"names of {kind}" for kind in kinds if one.names(kind) != other.names(kind)]
        found += [
            f"{name}|{kind}"
            for kind in kinds
            for name in one.names(kind)
            if values(one, name, kind) != values(other, name, kind)
        ]
        for fact in ("parameters", "groups", "tied", "loss_scaler"):
            if one.manifest[fact] != other.manifest[fact]:
                found.append(f"{fact}: {one.manifest[fact]} and {other.manifest[fact]}")
        if {group["step"] for group in other.manifest["groups"]} != {STEPS}:
            found.append("the steps are not counted")
        if not one.manifest["tied"]:
            found.append("nothing is tied: the test shows nothing")
        for kind in ("exp_avg_sq", "frozen"):
            if not any(any(values(one, name, kind)) for name in one.names(kind)):
                found.append(f"{kind} is zero: the test shows nothing")
    return found


def values(reader: Any, name: str, kind: str) -> bytes:
    """A stored tensor's bytes, in fp32 where it is bf16: exact, so equal values are equal bytes."""
    raw = reader.read(name, kind)
    if reader.dtype(name, kind) == "BF16":
        raw = (raw.view("<u2").astype("<u4") << 16).view("u1")
    return raw.tobytes()


def go_on(engine: Any, first: int) -> list[float]:
    return [one_step(engine, step) for step in range(first, STEPS + MORE + 1)]


def one_step(engine: Any, step: int) -> float:
    """The loss of a step, over all processes."""
    metrics = engine.step(step, *batches_of(engine, step), 3e-3)
    return float(engine.world.sum_floats(metrics.loss.double().cpu().reshape(1)))


def batches_of(engine: Any, step: int) -> tuple[list[Any], int]:
    rank, size = engine.world.rank, engine.world.size
    return micro_batches(step, rank, size, SEQUENCES // size, sequences=SEQUENCES)


def pointers(engine: Any) -> list[Any]:
    """Where every view of the state lies."""
    return [
        (piece.parameter, piece.start, kind, view.data_ptr(), view.numel())
        for piece in [*engine.state.owned(), *engine.state.held()]
        for kind, view in piece.views.items()
    ]


def named_buffers(engine: Any) -> list[Any]:
    from train.state import persistent_buffers

    return list(persistent_buffers(engine.model))


def make_engine(base: Any, run: tuple[str, str], topology: Topology, world: Any, seed: int) -> Any:
    """An engine of a run in (model, precision); another seed has other weights, frozen ones too."""
    from accelerate.state import AcceleratorState

    from configs.schema import Lora, Model, Parallelism
    from train.engine import build_engine

    model, precision = run
    shapes: dict[str, Any] = {
        "mixed": {"arch": "qwen3", "config": dict(MIXED)},
        "adapted": {"arch": "bloom", "config": dict(ADAPTED), "lora": Lora(r=4)},
    }
    config = copy.deepcopy(base)
    config.run.seed, config.parallelism = seed, Parallelism(**ENGINES[topology.engine])
    config.model = Model(**shapes[model], precision=precision)
    # Accelerate keeps one DeepSpeed configuration a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    return build_engine(config, world, SEQUENCES // world.size)


def make_models_mixed() -> None:
    """Freeze a layer of every Qwen3 built in this process, and give it buffers.

    ZeRO-3 lets go of parameters above a size, and cuts its state into sub-groups of a size: both sizes become
    small enough for so small a model to have either kind.
    """
    import torch

    from train import deepspeed_engine, model

    prepare, settings = model._prepare, deepspeed_engine.deepspeed_settings

    def prepare_mixed(built: Any, config: Any) -> Any:
        if config.arch == "qwen3":
            built.model.layers[0].requires_grad_(False)
            built.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
            built.register_buffer("scale", torch.full((2, 1), 0.1))
        return prepare(built, config)

    def small_settings(*args: Any) -> dict[str, Any]:
        found = settings(*args)
        if found["zero_optimization"]["stage"] == 3:
            found["zero_optimization"] |= {"stage3_param_persistence_threshold": 40, "sub_group_size": 600}
        return found

    model._prepare, deepspeed_engine.deepspeed_settings = prepare_mixed, small_settings
