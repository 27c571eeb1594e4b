"""What was saved is what is live; whatever is not is told, wherever it hides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.exchange import STEPS, one_step, save
from support.processes import run_workers
from support.runs import tiny
from support.small_models import ALONE
from train import portable, self_check
from train.engine import Engine, build_engine
from train.self_check import compare

FROZEN = "transformer.h.0.mlp.dense_h_to_4h.weight"
TRAINED = "transformer.h.1.mlp.dense_h_to_4h.weight"
EMBEDDING = "transformer.word_embeddings.weight"
STAGES = [
    ["parallelism=zero1", "model.precision=bf16"],
    ["parallelism=zero2", "model.precision=bf16"],
    ["parallelism=zero3", "model.precision=bf16"],
]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Some of it frozen, with a buffer, after some steps."""
    from train import model

    prepare = model._prepare

    def with_more(built: Any, config: Any) -> Any:
        built.get_parameter(FROZEN).requires_grad_(False)
        built.register_buffer("seen", torch.arange(3))
        return prepare(built, config)

    monkeypatch.setattr(model, "_prepare", with_more)
    made = build_engine(tiny(tmp_path, "parallelism=ddp", "parallelism.processes=1"), ALONE, 2)
    for step in range(1, STEPS + 1):
        one_step(made, step)
    return made


@pytest.fixture
def checkpoint(engine: Engine, tmp_path: Path) -> Path:
    return save(engine, tmp_path / "checkpoints")


def view(engine: Engine, name: str, kind: str) -> torch.Tensor:
    for piece in engine.state.held():
        if piece.parameter == name:
            return piece.views[kind]
    raise KeyError(name)


def flip(tensor: torch.Tensor, *where: int) -> None:
    """The lowest bit of some elements."""
    bits = tensor.view(-1).view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    bits[list(where)] ^= 1


def adam(engine: Engine, name: str) -> dict[str, torch.Tensor]:
    return engine.optimizer.state[engine.model.get_parameter(name)]


def untie(engine: Engine) -> None:
    head = engine.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())


def test_a_fresh_checkpoint_is_what_is_live(engine: Engine, checkpoint: Path) -> None:
    assert compare(engine, checkpoint, None) is None


BREAKS: dict[str, tuple[Callable[[Engine], object], str]] = {
    "a weight": (
        lambda engine: flip(view(engine, TRAINED, "master"), 4000, 7, 9),
        f"{TRAINED}|master differs in 3 of 4096 elements, first at 7",
    ),
    "a first moment": (
        lambda engine: flip(view(engine, TRAINED, "exp_avg"), 4095),
        f"{TRAINED}|exp_avg differs in 1 of 4096 elements, first at 4095",
    ),
    "a second moment": (
        lambda engine: flip(view(engine, EMBEDDING, "exp_avg_sq"), 100),
        f"{EMBEDDING}|exp_avg_sq differs in 1 of 10240 elements, first at 100",
    ),
    "a frozen weight": (
        lambda engine: flip(view(engine, FROZEN, "frozen"), 0),
        f"{FROZEN}|frozen differs in 1 of 4096 elements, first at 0",
    ),
    "a buffer": (
        lambda engine: flip(engine.model.seen, 2),
        "seen|buffer differs in 1 of 3 elements, first at 2",
    ),
    "a buffer's shape": (
        lambda engine: engine.model.register_buffer("seen", torch.arange(3).view(3, 1)),
        "the shape of seen is [3] in the manifest, [3, 1] in memory",
    ),
    "another buffer": (
        lambda engine: engine.model.register_buffer("more", torch.zeros(1)),
        "the list of buffers is ['seen'] in the manifest, ['more', 'seen'] in memory",
    ),
    "the step of a group": (
        lambda engine: [state["step"].add_(1) for state in engine.optimizer.state.values()],
        "groups[0].step is 3 in the manifest, 4 in memory",
    ),
    "the step of one tensor": (
        lambda engine: adam(engine, TRAINED)["step"].add_(1),
        f"Adam's step of {TRAINED} is 3 in the manifest, 4 in memory",
    ),
    "a hyperparameter": (
        lambda engine: engine.optimizer.param_groups[1].update(betas=(0.9, 0.5)),
        "groups[1].hyperparameters.betas[1] is 0.95 in the manifest, 0.5 in memory",
    ),
    "a tie": (untie, f"lm_head.weight is no longer tied to {EMBEDDING}"),
    "a frozen weight that trains now": (
        lambda engine: (
            view(engine, TRAINED, "master") is not None
            and engine.model.get_parameter(TRAINED).requires_grad_(False)
        ),
        f"holds no '{TRAINED}|frozen'",
    ),
    "a loss scaler": (
        lambda engine: setattr(engine.state, "loss_scaler", lambda: {"cur_scale": 2.0}),
        "loss_scaler is None in the manifest, {'cur_scale': 2.0} in memory",
    ),
    "a parameter that nobody saved": (
        lambda engine: engine.model.register_parameter("more", torch.nn.Parameter(torch.zeros(2))),
        "parameters.more is None in the manifest, [2] in memory",
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_what_differs_is_told(
    engine: Engine, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(self_check, "CHUNK", 1000)
    break_it, told = BREAKS[broken]
    break_it(engine)
    assert (compare(engine, checkpoint, None) or "").endswith(told)


def test_a_damaged_checkpoint_is_told(engine: Engine, checkpoint: Path) -> None:
    (file,) = checkpoint.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert "differs in 1 of" in str(compare(engine, checkpoint, None))
    file.unlink()
    assert str(file) in str(compare(engine, checkpoint, None))


def test_cursors_are_compared(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cursors = np.arange(24).reshape(4, 3, 2)
    small = portable.small_fragments
    monkeypatch.setattr(portable, "small_fragments", lambda engine: small(engine, cursors))
    checkpoint = save(engine, tmp_path / "checkpoints")
    assert compare(engine, checkpoint, cursors) is None
    assert (
        compare(engine, checkpoint, cursors + 1)
        == "data.cursors|buffer differs in 24 of 24 elements, first at 0"
    )
    assert "the list of buffers" in str(compare(engine, checkpoint, None))


def test_weights_of_a_pretrained_base_are_not_looked_for(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fragments", "stored_shapes"):
        both = getattr(portable, name)
        monkeypatch.setattr(portable, name, lambda first, with_frozen, both=both: both(first, False))
    checkpoint = save(engine, tmp_path / "checkpoints")
    assert "parameters." + FROZEN in str(compare(engine, checkpoint, None))
    engine.config.model.pretrained = "base"
    assert compare(engine, checkpoint, None) is None


# Where state is partitioned -----------------------------------------------------------------------------


def partitioned(folder: str) -> list[Any]:
    """In every rank, for each stage: what is told of a whole checkpoint, and of live state changed since."""
    from accelerate.state import AcceleratorState

    from train import distributed

    world, found = None, []
    for stage in STAGES:
        config = tiny(Path(folder), "schedule.global_batch=6", *stage, "parallelism.processes=null")
        world = world or distributed.start(config.cluster)
        engine = build_engine(config, world, 3)
        one_step(engine, 1)
        checkpoint = save(engine, Path(folder, stage[0]))
        told = [compare(engine, checkpoint, None)]
        for kind in ("master", "exp_avg"):
            piece = next(engine.state.held())
            flip(piece.views[kind], 1)
            told.append(compare(engine, checkpoint, None))
            flip(piece.views[kind], 1)
        weight = dict(engine.model.named_parameters())[piece.parameter].data
        flip(weight, piece.start + 1)
        told.append(compare(engine, checkpoint, None))
        flip(weight, piece.start + 1)
        for state in engine.optimizer.state.values():
            state["step"].add_(1)
        told.append(compare(engine, checkpoint, None))
        expected = [
            None,
            *(
                f"{piece.parameter}|{kind} differs in 1 of {piece.views[kind].numel()} elements,"
                f" first at {piece.start + 1}"
                for kind in ("master", "exp_avg")
            ),
            f"{piece.parameter}, as the model computes with it, differs in 1 of"
            f" {piece.views['master'].numel()} elements, first at {piece.start + 1}",
            "groups[0].step is 1 in the manifest, 2 in memory",
        ]
        found += [
            f"{stage}: {one}, not {other}" for one, other in zip(told, expected, strict=True) if one != other
        ]
        AcceleratorState._reset_state(reset_partial_state=True)
    distributed.stop()
    return found


@pytest.mark.slow
def test_each_process_checks_its_partition(tmp_path: Path) -> None:
    assert run_workers(2, partitioned, str(tmp_path), timeout=240, gloo=False) == [[], []]
