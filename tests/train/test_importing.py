"""Real checkpoints of DeepSpeed and Accelerate, made runs of; the next losses are those of the source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from base.errors import UmbelError
from checkpoint.folders import steps
from checkpoint.reader import StateReader
from configs.schema import RunConfig
from record.folder import RunFolder
from record.metrics import read_metrics
from support.processes import run_workers
from support.runs import tiny, work
from train.importing.make import ALONE, find, growing, install

MOMENTS = ("exp_avg", "exp_avg_sq")
STEPS, MICRO_BATCH = 3, 2
# Sizes that neither two processes nor DeepSpeed's alignment divide.
SHAPE = (
    "model.config.hidden_size=33",
    "model.config.n_head=3",
    "model.config.n_layer=1",
    "model.config.vocab_size=321",
    "schedule.steps=6",
    "parallelism.processes=null",
    "optimizer.lr=1e-2",
    "data.held_out=0",
)
LORA = ("+model.lora={r: 2, alpha: 4.0, dropout: 0.0}",)
CASES: dict[str, tuple[str, ...]] = {
    "stage0-fp32": ("parallelism=ddp", "parallelism.engine=deepspeed"),
    "stage1-lora": ("parallelism=zero1", *LORA),
    "stage2-fp32": ("parallelism=zero2",),
    "stage3-lora": ("parallelism=zero3", *LORA),
}
# Without Umbel's engine: master copies at stage 0, sub-groups, wrapped names, optimizers that know no names.
NATIVE = {"stage0-native-bf16": 0, "stage1-native-bf16": 1, "stage3-native-bf16": 3}


class Wrapped(torch.nn.Module):
    """A model inside another, as trainers have it: every name begins with ``module.``."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.module(input_ids=input_ids).logits


def config_of(folder: str | Path, case: str, *more: str) -> RunConfig:
    return tiny(Path(folder), *SHAPE, f"run.name={case}", *CASES.get(case, ()), *more)


def save_all(folder: str) -> dict[str, list[float]]:
    """In every rank: train each case, save as DeepSpeed does, keep the live state, go on; the next losses."""
    import deepspeed
    from accelerate.state import AcceleratorState

    from train import distributed
    from train.engine import build_engine

    losses, world = {}, None
    for case in CASES:
        config = config_of(folder, case)
        world = world or distributed.start(config.cluster)
        engine = build_engine(config, world, MICRO_BATCH)
        keep = partial(_keep, engine, Path(folder, f"{case}-{world.rank}.npz"))
        # Accelerate's save_state is DeepSpeed's save_checkpoint with a tag of its own.
        by = engine.accelerator.save_state if case == "stage2-fp32" else engine.engine.save_checkpoint
        save = partial(by, str(Path(folder, case)))
        losses[case] = _train(config, world, engine.step, save, keep)
        AcceleratorState._reset_state(reset_partial_state=True)
    for case, stage in NATIVE.items():
        config = config_of(folder, case)
        losses[case] = _train(config, world, *_native(config, world, Path(folder, case), stage))
    deepspeed.comm.barrier()
    distributed.stop()
    return losses


def _train(config: RunConfig, world: Any, step: Any, save: Any, keep: Any, first: int = 1) -> list[float]:
    from configs.batch import global_batch_at
    from data.prepare import prepare_run
    from data.stream import BatchStream, Share
    from train.schedule import learning_rate

    stream = BatchStream(prepare_run(config), config)
    share, losses = Share(world.rank, world.size, MICRO_BATCH), []
    rows = stream.rows(share)
    for number in range(first, STEPS + 3):
        batches = stream.micro_batches(rows, number, share)
        targets = world.sum([sum(batch.targets for batch in batches)])[0]
        assert global_batch_at(config.schedule, number) == 4
        metrics = step(number, batches, targets, learning_rate(config.schedule, config.optimizer.lr, number))
        losses.append(float(world.sum_floats(metrics.loss.double().reshape(1))))
        if number == STEPS:
            save()
            keep()
    return losses[-2:]


def _keep(engine: Any, path: Path) -> None:
    """What this rank owns of the live state."""
    kept = {
        f"{piece.parameter}|{kind}|{piece.start}": view.detach().float().numpy().copy()
        for piece in engine.state.owned()
        for kind, view in piece.views.items()
    }
    np.savez(path, **kept)


def _native(config: RunConfig, world: Any, out: Path, stage: int) -> tuple[Any, Any, Any]:
    """Step, save and keep of a DeepSpeed engine as a user would make it."""
    import deepspeed
    import torch

    from train.model import build_model
    from train.parameters import parameter_groups

    model = build_model(config.model, config.run.seed)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model, config.optimizer)
    ]
    optimizer = torch.optim.AdamW(groups, betas=tuple(config.optimizer.betas), eps=config.optimizer.eps)
    wrapped = Wrapped(model)
    wrapped.register_buffer("counter", torch.arange(3))
    settings = {
        "train_micro_batch_size_per_gpu": MICRO_BATCH,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "sub_group_size": 4000},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    engine, *_ = deepspeed.initialize(model=wrapped, optimizer=optimizer, config=settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def step(number: int, batches: list[Any], targets: int, lr: float) -> Any:
        for group in optimizer.param_groups:
            group["lr"] = lr
        (batch,) = batches
        loss = loss_of(engine, batch) / targets
        engine.backward(loss * world.size)
        engine.step()
        return SimpleNamespace(loss=loss.detach())

    keep = partial(_keep_native, engine.optimizer, names, Path(f"{out}-{world.rank}.npz"), world.rank)
    return step, partial(engine.save_checkpoint, str(out)), keep


def loss_of(logits: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> torch.Tensor:
    from train.loss import cross_entropy_sum

    return cross_entropy_sum(
        logits(torch.from_numpy(batch.input_ids)).float(), torch.from_numpy(batch.labels)
    )


def _keep_native(optimizer: Any, names: dict[int, str], path: Path, rank: int) -> None:
    from train.deepspeed_state import zero_state
    from train.state import Slice

    if not hasattr(optimizer, "fp32_groups"):
        _keep(SimpleNamespace(state=zero_state(optimizer, names)), path)
        return
    pairs = [
        (names[id(parameter)], master)
        for parameters, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        for parameter, master in zip(parameters, masters, strict=True)
    ]
    slices = [
        Slice(name, 0, {"master": master.view(-1)} | {kind: state[kind].view(-1) for kind in MOMENTS})
        for name, master in pairs
        for state in [optimizer.optimizer.state[master]]
    ]
    _keep(SimpleNamespace(state=SimpleNamespace(owned=lambda: slices if rank == 0 else [])), path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """A folder with a checkpoint of each case by two processes, and the losses with which each went on."""
    folder = tmp_path_factory.mktemp("made")
    return folder, run_workers(2, save_all, str(folder), timeout=300, gloo=False)[0]


def imported(config: RunConfig, place: Path, **more: Any) -> Path:
    """What `umbel checkpoint import` does, without a command line; the checkpoint it makes."""
    from support.runs import save as freeze

    run = RunFolder.of(config)
    with growing(run) as folder:
        found = find(config, place, folder, **({"step": None, "tag": None} | more))
        install(found, config, folder, place)
        freeze(config, folder.run_yaml)
    (checkpoint,) = steps(run.checkpoints).values()
    return checkpoint


def live_state(folder: Path, case: str) -> dict[str, np.ndarray]:
    """The flat tensors that the source's processes held, by ``name|kind``."""
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for rank in range(2):
        with np.load(folder / f"{case}-{rank}.npz") as kept:
            for key in kept.files:
                tensor, start = key.rsplit("|", 1)
                pieces.setdefault(tensor, {})[int(start)] = kept[key]
    return {tensor: np.concatenate([found[at] for at in sorted(found)]) for tensor, found in pieces.items()}


def stored_state(checkpoint: Path) -> dict[str, np.ndarray]:
    with StateReader(checkpoint) as reader:
        return {
            f"{name}|{kind}": tensor(reader, name, kind).float().numpy()
            for kind in ("master", *MOMENTS, "frozen")
            for name in reader.names(kind)
        }


def tensor(reader: StateReader, name: str, kind: str) -> torch.Tensor:
    dtype = torch.bfloat16 if reader.dtype(name, kind) == "BF16" else torch.float32
    return torch.from_numpy(reader.read(name, kind)).view(dtype)


def next_losses(config: RunConfig, checkpoint: Path) -> list[float]:
    """Of two steps of a plain engine in this process, from a checkpoint on."""
    from data.prepare import prepare_run
    from data.stream import BatchStream
    from train.base_model import describe_base
    from train.restoring import load
    from train.torch_engine import TorchEngine

    config = dataclasses.replace(config, parallelism=dataclasses.replace(config.parallelism, zero_stage=0))
    stream, engine = BatchStream(prepare_run(config), config), TorchEngine(config, ALONE)
    run_id = (checkpoint.parents[1] / "run_id").read_text().strip()
    position = load(checkpoint, config, ALONE, engine, stream, run_id, describe_base(config.model)).position
    assert (position.step, position.sequences, position.tokens) == (STEPS, 4 * STEPS, 4 * STEPS * 32)
    return _train(config, ALONE, engine.step, None, None, first=STEPS + 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, *NATIVE])
def test_deepspeed(made: tuple[Path, dict[str, list[float]]], tmp_path: Path, case: str) -> None:
    folder, losses = made
    config = config_of(folder, case, f'run.dir="{tmp_path}"')
    checkpoint = imported(config, folder / case)
    stored, live = stored_state(checkpoint), live_state(folder, case)
    assert stored.keys() == live.keys()
    assert [key for key in live if stored[key].tobytes() != live[key].tobytes()] == []
    assert all(stored[key].any() for key in stored if key.endswith("exp_avg_sq")), "the test shows nothing"
    tolerance = 1e-2 if "bf16" in case else 1e-5
    assert next_losses(config, checkpoint) == pytest.approx(losses[case], rel=tolerance)


@pytest.mark.slow
def test_accelerate(tmp_path: Path) -> None:
    """One process without DeepSpeed; a worker, as `umbel resume` starts it, goes on from its checkpoint."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from train.engine import adamw
    from train.model import build_model

    config = config_of(tmp_path, "accelerate", "parallelism.micro_batch=2")
    accelerator = Accelerator(cpu=True)
    model = build_model(config.model, config.run.seed)
    model, optimizer = accelerator.prepare(model, adamw(model, config.optimizer))
    live: dict[str, torch.Tensor] = {}

    def step(number: int, batches: list[Any], targets: int, lr: float) -> Any:
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses = [loss_of(lambda ids: model(input_ids=ids).logits, batch) / targets for batch in batches]
        accelerator.backward(sum(losses))
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return SimpleNamespace(loss=sum(losses).detach())

    def keep() -> None:
        for name, parameter in model.named_parameters():
            live[f"{name}|master"] = parameter.detach().clone()
            live.update({f"{name}|{kind}": optimizer.state[parameter][kind].clone() for kind in MOMENTS})

    losses = _train(config, ALONE, step, lambda: accelerator.save_state(str(tmp_path / "state")), keep)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UmbelError, match="does not say its step; say --step"):
        imported(config, tmp_path / "state")
    checkpoint = imported(config, tmp_path / "state", step=STEPS)
    stored = stored_state(checkpoint)
    assert stored.keys() == live.keys()
    assert [key for key in live if stored[key].tobytes() != live[key].numpy().tobytes()] == []
    (ended,) = work(config, env={"UMBEL_STOP_AFTER": str(STEPS + 2)})
    assert ended.returncode == 0, ended
    lines = read_metrics(RunFolder.of(config))
    assert [line["step"] for line in lines] == [STEPS + 1, STEPS + 2]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
