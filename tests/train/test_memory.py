"""Memory by part against bytes counted by hand and against what torch really allocates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from base.errors import UmbelError
from configs.compose import compose
from configs.schema import Model, RunConfig
from train.architecture import decoder_config
from train.loss import cross_entropy_sum
from train.masking import logits_of
from train.memory import USABLE, device_memory, estimate, runs_on_cpu, state_bytes
from train.micro_batch import choose_micro_batch
from train.model import build_model, meta_model
from train.parameters import ParameterCount, parameter_count
from train.rehearse import formula, rehearse

GIB = 2**30
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
MODELS = {
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "attn_pdrop": 0.0},
    "llama": LLAMA,
    "olmo2": {**LLAMA, "num_key_value_heads": 4},
}


def run(*overrides: str) -> RunConfig:
    return compose(["cluster.memory_gb=80", *overrides])


def measured(
    model: Model, rows: int, length: int, dtype: torch.dtype, autocast: bool, masked: bool = False
) -> int:
    """Peak bytes beside the weights that torch's own profiler sees in a forward and backward pass."""
    built = build_model(model, 0).to(dtype)
    tokens = torch.zeros((rows, length), dtype=torch.long)
    positions = (torch.arange(length) % 48).expand(rows, -1) if masked else None
    for parameter in built.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return logits_of(built, tokens, positions)

    cross_entropy_sum(forward(), tokens).backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        cross_entropy_sum(forward(), tokens).backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
@pytest.mark.parametrize("arch", MODELS)
def test_a_rehearsal_takes_what_the_real_pass_takes(
    arch: str, dtype: torch.dtype, autocast: bool, checkpointing: bool
) -> None:
    model = Model(arch=arch, config=MODELS[arch], activation_checkpointing=checkpointing)
    found = rehearse(model, 4, 128, dtype=dtype, autocast=autocast, cuda=False)
    real = measured(model, 4, 128, dtype, autocast)
    assert found.activations + found.loss + found.working == pytest.approx(real, rel=0.04)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "olmo2"])
def test_a_document_mask_takes_its_memory_too(arch: str, checkpointing: bool) -> None:
    model = Model(arch=arch, config=MODELS[arch], activation_checkpointing=checkpointing)
    plain, found = (
        rehearse(model, 2, 256, dtype=torch.bfloat16, autocast=False, cuda=False, masked=masked)
        for masked in (False, True)
    )
    real = measured(model, 2, 256, torch.bfloat16, autocast=False, masked=True)
    assert found.activations + found.loss + found.working == pytest.approx(real, rel=0.04)
    assert found.activations > plain.activations
    run_ = ("model=llama_tiny", "model.attention=sdpa", "parallelism.micro_batch=2")
    without, within = (estimate(run(*run_, f"data.intra_document_mask={on}"), 1, 2) for on in (False, True))
    assert within.activations > without.activations


@pytest.mark.parametrize("arch", MODELS)
def test_cuda_keeps_more_in_fp32_under_autocast_also_when_it_recomputes(arch: str) -> None:
    for checkpointing in (False, True):
        model = Model(arch=arch, config=MODELS[arch], activation_checkpointing=checkpointing)
        cpu, cuda = (
            rehearse(model, 2, 64, dtype=torch.float32, autocast=True, cuda=there) for there in (False, True)
        )
        assert cuda.activations + cuda.working >= cpu.activations + cpu.working


def test_the_formula_is_near_the_rehearsal_for_the_architecture_it_was_made_for() -> None:
    model = compose(["model=bloom_560m"]).model
    found = rehearse(model, 1, 512, dtype=torch.bfloat16, autocast=False, cuda=True)
    guess = formula(decoder_config(model), 1, 512, torch.bfloat16, checkpointing=False)
    assert guess.activations == pytest.approx(found.activations, rel=0.25)
    assert guess.loss == pytest.approx(found.loss, rel=0.01)


def test_what_cannot_be_rehearsed_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr("train.rehearse._rehearse", refuse)
    model = Model(arch="llama", config=LLAMA)
    found = rehearse(model, 2, 64, dtype=torch.bfloat16, autocast=False, cuda=True)
    assert found == formula(decoder_config(model), 2, 64, torch.bfloat16, checkpointing=False)


N = 559_214_592


@pytest.mark.parametrize(
    ("overrides", "world", "parameters", "gradients", "optimizer"),
    [
        (["parallelism=single"], 1, 4 * N, 4 * N, 8 * N),
        (["parallelism=ddp"], 8, 4 * N, 4 * N, 8 * N),
        (["parallelism=zero1"], 8, 2 * N, 4 * N, 12 * N // 8),
        (["parallelism=zero2"], 8, 2 * N, 4 * N // 8, 12 * N // 8),
        (["parallelism=zero3"], 8, 2 * N // 8, 4 * N // 8, 12 * N // 8),
        (["parallelism=zero3", "model.precision=fp32"], 8, 4 * N // 8, 4 * N // 8, 8 * N // 8),
        (["parallelism=zero3_offload"], 8, 0, 0, 0),
    ],
)
def test_state_is_counted_by_engine_and_stage(
    overrides: list[str], world: int, parameters: int, gradients: int, optimizer: int
) -> None:
    memory = estimate(run("model=bloom_560m", "data.sequence_length=128", *overrides), world, 1)
    assert (memory.parameters, memory.gradients, memory.optimizer) == (parameters, gradients, optimizer)
    assert memory.total == sum(memory.parts.values())


def test_what_is_offloaded_is_in_host_memory() -> None:
    waits = "checkpoint.asynchronous=false"
    config = run("model=bloom_tiny", "parallelism=zero3_offload", waits)
    kept = estimate(run("model=bloom_tiny", "parallelism=zero3", waits), 2, 1)
    assert kept.host == 0
    assert estimate(config, 2, 1).host == kept.parameters + kept.gradients + kept.optimizer


@pytest.mark.parametrize(("parallelism", "world"), [("single", 1), ("ddp", 8), ("zero2", 8), ("zero3", 7)])
def test_the_copy_to_save_from_is_in_host_memory_beside_a_device(parallelism: str, world: int) -> None:
    config = run("model=bloom_560m", "data.sequence_length=128", f"parallelism={parallelism}")
    memory = estimate(config, world, 1)
    assert memory.host == -(-12 * N // world)
    assert memory.snapshot == 0


def test_on_the_cpu_the_copy_takes_from_the_same_memory() -> None:
    cpu = ["model=llama_tiny", "cluster.device=cpu"]
    beside, without = (
        estimate(compose([*cpu, f"checkpoint.asynchronous={on}"]), 2, 1) for on in ("true", "false")
    )
    assert beside.total - without.total == beside.snapshot == 6 * parameters().total
    assert beside.host == without.snapshot == 0


@pytest.mark.parametrize(
    ("precision", "parallelism", "frozen_bytes"),
    [("fp32", "zero2", 4), ("bf16", "zero2", 2), ("bf16", "ddp", 4), ("bf16", "zero3", 2)],
)
def test_frozen_weights_of_ones_own_are_part_of_the_state(
    precision: str, parallelism: str, frozen_bytes: int
) -> None:
    count = parameters("model.lora={r: 4}")
    config = run(
        "model=llama_tiny",
        "model.lora={r: 4}",
        f"model.precision={precision}",
        f"parallelism={parallelism}",
    )
    frozen = count.total - count.trainable
    assert state_bytes(config, count) == 12 * count.trainable + frozen_bytes * frozen
    base = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained="org/base"))
    assert state_bytes(base, count) == 12 * count.trainable


def parameters(*overrides: str) -> ParameterCount:
    return parameter_count(meta_model(run("model=llama_tiny", *overrides).model))


def test_adapters_need_no_state_for_the_frozen_base() -> None:
    full = estimate(run("model=llama_tiny"), 1, 1)
    lora = estimate(run("model=llama_tiny", "model.lora={r: 4}"), 1, 1)
    assert lora.parameters > full.parameters
    assert lora.optimizer < 0.2 * full.optimizer
    assert lora.gradients < 0.2 * full.gradients


def test_a_single_micro_batch_allocates_gradients_as_activations_go() -> None:
    accumulated = estimate(run("model=llama_tiny", "schedule.global_batch=8"), 1, 4)
    at_once = estimate(run("model=llama_tiny", "schedule.global_batch=4"), 1, 4)
    assert at_once.gradients + at_once.working <= accumulated.gradients + accumulated.working


@settings(max_examples=6, deadline=None)
@given(batch=st.sampled_from([8, 12]), world=st.sampled_from([1, 2, 4]), memory=st.integers(2**26, 2**28))
def test_auto_is_the_largest_divisor_that_fits(batch: int, world: int, memory: int) -> None:
    config = run(
        "model=llama_tiny", "parallelism=ddp", f"schedule.global_batch={batch}", "data.sequence_length=64"
    )
    share = batch // world
    fitting = [
        micro
        for micro in range(1, share + 1)
        if share % micro == 0 and estimate(config, world, micro).total <= USABLE * memory
    ]
    assert choose_micro_batch(config, world, memory) == max(fitting)


def test_auto_divides_every_batch_of_a_ramp() -> None:
    ramp = "schedule.batch_ramp={start: 4, increment: 4, sequences: 100}"
    config = run("model=llama_tiny", "parallelism=ddp", "schedule.global_batch=32", ramp)
    assert choose_micro_batch(config, 2, 80 * GIB) == 2


def test_auto_follows_a_fixed_accumulation() -> None:
    config = run("model=llama_tiny", "schedule.global_batch=32", "parallelism.accumulation=8")
    assert choose_micro_batch(config, 1, 80 * GIB) == 4


def test_a_cpu_takes_few_sequences_at_once() -> None:
    config = compose(["model=llama_tiny", "cluster.device=cpu", "data.sequence_length=32"])
    assert runs_on_cpu(config)
    assert choose_micro_batch(config, 1, 80 * GIB) == 8


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(UmbelError, match="not divisible by 3 processes"):
        choose_micro_batch(run("model=llama_tiny", "parallelism=ddp"), 3, GIB)


def test_a_model_that_does_not_fit_is_refused_with_what_would_help() -> None:
    config = run("model=llama_tiny", "parallelism=ddp", "data.sequence_length=512")
    with pytest.raises(UmbelError) as refused:
        choose_micro_batch(config, 8, 2**26)
    said = str(refused.value)
    assert "too large for the memory" in said
    assert "optimizer 14.0 MiB" in said
    assert said.split("try ")[1].startswith("data.sequence_length=128")
    assert "model.activation_checkpointing=true" not in said  # it takes less, but does not fit either


def test_without_a_lighter_setting_more_memory_is_asked_for() -> None:
    lightest = ("parallelism=zero3_offload", "model.activation_checkpointing=true", "data.sequence_length=2")
    config = run("model=llama_tiny", *lightest)
    with pytest.raises(
        UmbelError,
        match="none of the lighter settings fits here: use devices with more memory or a smaller model",
    ):
        choose_micro_batch(config, 1, 2**20)


def test_memory_is_what_the_cluster_says_or_the_machine_has() -> None:
    assert device_memory(run("model=bloom_tiny")) == 80 * GIB
    cpu = compose(["cluster.device=cpu"])
    assert 0 < device_memory(cpu, processes=4) <= device_memory(cpu) // 3
