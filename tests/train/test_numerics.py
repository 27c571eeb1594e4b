"""The engines against a plain PyTorch loop: the same numbers at every stage, world size, accumulation."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from support.curves import GLOBAL_BATCH, case_config, curves, global_batch
from support.processes import run_workers
from train.model import build_model

STEPS = 50
LR = 3e-3  # fast learning, yet not so fast that a rounding error grows into another trajectory
STAGES = ["ddp", "zero1", "zero2", "zero3"]


def plain_loop(folder: Path, bf16: bool = False) -> list[list[float]]:
    """[loss, grad_norm] of 50 steps, in nothing but PyTorch and Transformers."""
    config = case_config(str(folder), [])
    model = build_model(config.model, config.run.seed)  # the same initial weights; the rest is here
    if bf16:
        model.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        (spared if name.endswith("bias") or "norm" in name or "ln_" in name else decayed).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    curve = []
    for step in range(1, STEPS + 1):
        decay = 0.5 * (1 + math.cos(math.pi * (step - 5) / (STEPS - 5)))
        for group in optimizer.param_groups:
            group["lr"] = LR * (step / 5 if step <= 5 else 0.1 + 0.9 * decay)
        inputs, labels = (torch.from_numpy(array) for array in global_batch(step))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=inputs).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        curve.append([loss.item(), norm.item()])
    return curve


def cases(world_size: int, stages: list[str], accumulations: tuple[int, ...], *more: str) -> list[list[str]]:
    return [
        [
            f"parallelism={stage}",
            "parallelism.processes=null",
            f"parallelism.micro_batch={micro_batch}",
            *more,
        ]
        for stage in stages
        for micro_batch in [GLOBAL_BATCH // world_size // accumulation for accumulation in accumulations]
    ]


def assert_close(
    found: list[list[float]], expected: list[list[float]], tolerance: float, case: list[str]
) -> None:
    for step, ((loss, norm), (plain_loss, plain_norm)) in enumerate(zip(found, expected, strict=True), 1):
        assert loss == pytest.approx(plain_loss, rel=tolerance), f"loss at step {step} of {case}"
        assert norm == pytest.approx(plain_norm, rel=100 * tolerance), f"grad_norm at step {step} of {case}"


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_follows_the_plain_loop_in_fp32(tmp_path: Path, world_size: int) -> None:
    """ZeRO 0 (two ways), 1, 2, 3 × accumulation 1 and 4, with clipping, decay, warm-up, uneven masks."""
    expected = plain_loop(tmp_path)
    assert expected[-1][0] < 0.8 * expected[0][0], "the plain loop must learn, or the test shows nothing"
    assert any(norm > 0.5 for _, norm in expected), "clipping must act"
    asked = cases(world_size, STAGES, (1, 4))
    asked += cases(world_size, ["ddp"], (4,), "parallelism.engine=deepspeed")
    found = run_workers(world_size, curves, str(tmp_path), asked, STEPS, timeout=400, gloo=False)[0]
    for case, curve in zip(asked, found, strict=True):
        assert_close(curve, expected, 1e-5, case)


@pytest.mark.slow
def test_every_stage_follows_the_plain_loop_in_bf16(tmp_path: Path) -> None:
    expected = plain_loop(tmp_path, bf16=True)
    bf16 = ["model.precision=bf16"]
    asked = cases(2, [*STAGES, "zero3_offload"], (2,), *bf16)
    asked += cases(2, ["zero2"], (2,), "parallelism.offload_optimizer=true", *bf16)
    asked += cases(2, ["ddp"], (2,), "parallelism.engine=deepspeed", *bf16)
    found = run_workers(2, curves, str(tmp_path), asked, STEPS, timeout=400, gloo=False)[0]
    for case, curve in zip(asked, found, strict=True):
        for step, ((loss, _), (plain_loss, _)) in enumerate(zip(curve, expected, strict=True), 1):
            assert loss == pytest.approx(plain_loss, rel=1e-2), f"loss at step {step} of {case}"


@pytest.mark.slow
def test_dropout_draws_do_not_depend_on_the_world_size(tmp_path: Path) -> None:
    """With the same micro-batch the same draws: they hang on the global slot, not on the rank."""
    overrides = ["model.config.hidden_dropout=0.2", "parallelism=ddp", "parallelism.processes=null"]
    dropped = [[*overrides, "parallelism.micro_batch=2"]]
    plain = [["parallelism=ddp", "parallelism.processes=null", "parallelism.micro_batch=2"]]
    alone = run_workers(1, curves, str(tmp_path), dropped + plain, 8, gloo=False)[0]
    together = run_workers(2, curves, str(tmp_path), dropped, 8, gloo=False)[0]
    assert_close(together[0], alone[0], 1e-5, dropped[0])
    assert abs(alone[0][-1][0] - alone[1][-1][0]) > 1e-3, "dropout must act"


@pytest.mark.slow
def test_adapters_on_a_frozen_base_are_the_same_at_every_stage(tmp_path: Path) -> None:
    """What is frozen takes another way through DeepSpeed: its weights must arrive all the same."""
    asked = cases(1, STAGES, (2,), "++model.lora.r=4")
    found = run_workers(1, curves, str(tmp_path), asked, 8, gloo=False)[0]
    assert found[0][-1][0] != found[0][0][0]
    for case, curve in zip(asked[1:], found[1:], strict=True):
        assert_close(curve, found[0], 1e-5, case)


@pytest.mark.slow
def test_a_pretrained_model_is_the_same_at_every_stage(tmp_path: Path) -> None:
    build_model(case_config(str(tmp_path), []).model, seed=7).save_pretrained(tmp_path / "base")
    asked = cases(2, STAGES, (1,), f"base={tmp_path / 'base'}")
    plain = cases(2, ["ddp"], (1,))
    *found, other = run_workers(2, curves, str(tmp_path), asked + plain, 4, gloo=False)[0]
    for case, curve in zip(asked, found, strict=True):
        assert_close(curve, found[0], 1e-5, case)
    assert found[0][0] != other[0], "the pretrained weights must be used"


@pytest.mark.slow
def test_speed_options_do_not_change_the_numbers(tmp_path: Path) -> None:
    plain = cases(1, ["single"], (2,))
    options = [
        cases(1, ["single"], (2,), "model.activation_checkpointing=true"),
        cases(1, ["zero3"], (2,), "model.activation_checkpointing=true"),
        cases(1, ["single"], (2,), "model.compile=true"),
    ]
    asked = plain + [case for group in options for case in group]
    found = run_workers(1, curves, str(tmp_path), asked, 5, timeout=300, gloo=False)[0]
    for case, curve in zip(asked[1:], found[1:], strict=True):
        assert_close(curve, found[0], 1e-5, case)


def changed_buffers(folder: str, asked: list[list[str]]) -> list[str]:
    """In every rank: the buffers of each case's engine that are not what its model was built with."""
    from accelerate.state import AcceleratorState

    from train import distributed
    from train.engine import build_engine

    world, changed = None, []
    for overrides in asked:
        config = case_config(folder, overrides)
        world = world or distributed.start(config.cluster)
        engine = build_engine(config, world, 2)
        made = dict(build_model(config.model, config.run.seed).named_buffers())
        live = dict(engine.model.named_buffers())
        same = {
            name for name in made if live[name].dtype == made[name].dtype and live[name].equal(made[name])
        }
        changed += [f"{name} of {overrides}" for name in made if name not in same]
        assert any("inv_freq" in name for name in made), "a model without rotary tables shows nothing"
        AcceleratorState._reset_state(reset_partial_state=True)
    distributed.stop()
    return changed


@pytest.mark.slow
def test_rotary_models_are_the_same_at_every_stage(tmp_path: Path) -> None:
    """DeepSpeed casts all of a model to bf16; a rotary table in bf16 is another model's."""
    asked = cases(1, STAGES, (2,), "llama", "model.precision=bf16")
    assert run_workers(1, changed_buffers, str(tmp_path), asked, gloo=False)[0] == []
    exact = cases(1, STAGES, (2,), "llama")
    found = run_workers(1, curves, str(tmp_path), exact, 8, gloo=False)[0]
    for case, curve in zip(exact[1:], found[1:], strict=True):
        assert_close(curve, found[0], 1e-5, case)
