"""The state of every engine, saved and given to every other one. Guards upgrades of DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.curves import micro_batches
from support.processes import run_workers
from support.runs import tiny

STAGES = ["ddp", "zero1", "zero2", "zero3"]
# Sizes that neither a world of 2 nor DeepSpeed's alignment divides.
ODD = (
    "schedule.global_batch=8",
    "model.config.hidden_size=33",
    "model.config.n_head=3",
    "model.config.vocab_size=321",
)
STEPS = 3


def matrix(folder: str, precision: str) -> list[str]:
    """In every rank: save at each stage, load at each, save again. Returns what differs."""
    from accelerate.state import AcceleratorState

    from data.prepare import prepare_run
    from data.stream import BatchStream
    from record.folder import RunFolder
    from train import distributed
    from train.engine import build_engine
    from train.position import Position
    from train.saving import Saver

    world, differing = None, []
    for source in STAGES:
        losses: dict[str, float] = {}
        for target in [source, *STAGES]:
            config = tiny(
                Path(folder),
                *ODD,
                f"model.precision={precision}",
                f"parallelism={target}",
                f"run.name={source}-{target}",
                "parallelism.processes=null",
            )
            world = world or distributed.start(config.cluster)
            engine = build_engine(config, world, 2)
            stream = BatchStream(prepare_run(config), config)
            saver = Saver(config, world, RunFolder.of(config).create(), "id", stream)
            position = Position(STEPS, 8 * STEPS, 100)
            if not losses:
                for step in range(1, STEPS + 1):
                    one_step(engine, world, step)
                saver.save(engine, position)
                original = saver.folder.checkpoints / "step-00000003"
                losses["source"] = one_step(engine, world, STEPS + 1)
            else:
                position, _ = saver.load(engine, original)
                assert position == Position(STEPS, 8 * STEPS, 100)
                saver.save(engine, position)
                copy = saver.folder.checkpoints / "step-00000003"
                if world.is_first:
                    differing += [f"{source} to {target}: {what}" for what in differences(original, copy)]
                world.barrier()
                losses[target] = one_step(engine, world, STEPS + 1)
            AcceleratorState._reset_state(reset_partial_state=True)
        tolerance = 1e-5 if precision == "fp32" else 1e-2
        differing += [
            f"{source} to {target}: loss {loss} after it, not {losses['source']}"
            for target, loss in losses.items()
            if abs(loss / losses["source"] - 1) > (0 if target == source else tolerance)
        ]
    distributed.stop()
    return differing


def one_step(engine: Any, world: Any, step: int) -> float:
    batches, targets = micro_batches(step, world.rank, world.size, 2)
    metrics = engine.step(step, batches, targets, 1e-2)
    return float(world.sum_floats(metrics.loss.double().cpu().reshape(1)))


def differences(a: Path, b: Path) -> list[str]:
    """Tensors of two checkpoints that are not equal to the bit, and facts that differ."""
    from checkpoint.reader import StateReader

    with StateReader(a) as one, StateReader(b) as other:
        found = [
            f"{name}|{kind}"
            for kind in ("master", "exp_avg", "exp_avg_sq")
            for name in one.names(kind)
            if one.read(name, kind).tobytes() != other.read(name, kind).tobytes()
        ]
        if one.names("master") != other.names("master"):
            found.append("names")
        if {group["step"] for group in other.manifest["groups"]} != {STEPS}:
            found.append("step counters")
        if not any(one.read(name, "exp_avg_sq").any() for name in one.names("exp_avg_sq")):
            found.append("moments are zero: the test shows nothing")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_loads_what_every_other_saved(tmp_path: Path, world_size: int, precision: str) -> None:
    for found in run_workers(world_size, matrix, str(tmp_path), precision, timeout=300, gloo=False):
        assert found == []
