"""Loss curves of real engines on fixed batches, several cases in one set of processes."""

from __future__ import annotations

from typing import Any

import numpy as np

VOCABULARY, LENGTH, GLOBAL_BATCH = 320, 16, 8


def global_batch(step: int, sequences: int = GLOBAL_BATCH) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels [sequences, LENGTH] of a step, with uneven masks."""
    draw = np.random.default_rng(step)
    # A skewed distribution, so that there is something to learn.
    rows = np.minimum(draw.geometric(0.05, (sequences, LENGTH + 1)), VOCABULARY) - 1
    # Ranks and micro-batches get very different counts of targets.
    learned = draw.random((sequences, LENGTH)) < np.linspace(1.0, 0.1, sequences)[:, None]
    return rows[:, :-1].astype(np.int64), np.where(learned, rows[:, 1:], -100).astype(np.int64)


def packed_batch(step: int, sequences: int = GLOBAL_BATCH) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, labels and position ids of a step whose rows hold one to five documents each."""
    inputs, labels = global_batch(step, sequences)
    draw = np.random.default_rng((step, 1))
    starts = draw.random((sequences, LENGTH)) < np.linspace(0, 0.3, sequences)[:, None]
    starts[:, 0] = True
    # The last token of a document has no target: the next one is another document's.
    labels[:, :-1][starts[:, 1:]] = -100
    columns = np.arange(LENGTH)
    positions = columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    return inputs, labels, positions


def micro_batches(
    step: int,
    rank: int,
    world_size: int,
    micro_batch: int,
    packed: bool = False,
    sequences: int = GLOBAL_BATCH,
) -> tuple[list[Any], int]:
    """This rank's micro-batches of a step, and the global count of targets."""
    from data.stream import MicroBatch

    rows = packed_batch(step, sequences) if packed else (*global_batch(step, sequences), None)
    inputs, labels, positions = rows
    each = sequences // world_size
    cuts = [slice(k, k + micro_batch) for k in range(rank * each, (rank + 1) * each, micro_batch)]
    batches = [
        MicroBatch(
            inputs[cut],
            labels[cut],
            cut.start,
            _targets(labels[cut]),
            None if positions is None else positions[cut],
        )
        for cut in cuts
    ]
    return batches, _targets(labels)


def curves(folder: str, cases: list[list[str]], steps: int) -> list[list[list[float]]]:
    """[loss, grad_norm] of each step of each case; a case is a list of overrides. Runs in every rank."""
    import torch
    from accelerate.state import AcceleratorState

    from train import distributed
    from train.engine import build_engine

    found = []
    world = None
    for overrides in cases:
        config = case_config(folder, overrides)
        world = world or distributed.start(config.cluster)
        micro_batch = config.parallelism.micro_batch
        engine = build_engine(config, world, micro_batch)
        found.append(_curve(config, engine, world, micro_batch, range(1, steps + 1)))
        # Accelerate keeps one DeepSpeed configuration a process.
        AcceleratorState._reset_state(reset_partial_state=True)
        del engine
    torch.distributed.barrier()
    distributed.stop()
    return found


def case_config(folder: str, overrides: list[str]) -> Any:
    """A tiny run with these overrides; ``base=FOLDER`` takes that pretrained model, ``llama`` a Llama."""
    from pathlib import Path

    from configs.schema import Model
    from support.runs import tiny

    bases = [override for override in overrides if override.startswith("base=")]
    fixed = ("schedule.steps=50", "schedule.warmup_steps=5", f"schedule.global_batch={GLOBAL_BATCH}")
    free = ("parallelism.processes=null", "optimizer.lr=3e-3", "optimizer.clip_grad_norm=0.5")
    others = [override for override in overrides if override not in (*bases, "llama")]
    config = tiny(Path(folder), *fixed, *free, *others)
    if "llama" in overrides:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        shape |= {"vocab_size": VOCABULARY}
        config.model = Model(arch="llama", config=shape, precision=config.model.precision)
    for base in bases:
        config.model = Model(pretrained=base.removeprefix("base="), precision=config.model.precision)
    return config


def _curve(config: Any, engine: Any, world: Any, micro_batch: int, steps: range) -> list[list[float]]:
    from train.schedule import learning_rate

    curve = []
    for step in steps:
        packed = config.data.intra_document_mask
        batches, targets = micro_batches(step, world.rank, world.size, micro_batch, packed)
        lr = learning_rate(config.schedule, config.optimizer.lr, step)
        metrics = engine.step(step, batches, targets, lr)
        loss = world.sum_floats(metrics.loss.double().cpu().reshape(1))
        curve.append([float(loss), float(metrics.grad_norm)])
    return curve


def _targets(labels: np.ndarray) -> int:
    return int((labels != -100).sum())
