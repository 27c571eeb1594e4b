"""FLOPs per token, and the table of peaks (of which one wrong entry halves every reported MFU)."""

from __future__ import annotations

import pytest

from configs.compose import compose
from configs.schema import Lora
from train.flops import flops_per_token, mfu, peak_flops
from train.model import meta_model, model_config, parameter_count


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("AMD Instinct MI300X", 1307),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla V100-SXM2-32GB", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_its_name(name: str, tflops: float | None) -> None:
    assert peak_flops(name) == (tflops * 1e12 if tflops else None)


def cost(*overrides: str, sequence_length: int) -> float:
    model = compose(list(overrides)).model
    return flops_per_token(model_config(model), parameter_count(meta_model(model)), sequence_length)


def test_gpt2_costs_what_nanogpt_says() -> None:
    # nanoGPT estimate_mfu: 6 N + 12 L H Q T with N without positions.
    assert (
        cost("model=gpt2_124m", sequence_length=1024) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    )


def test_an_untied_input_embedding_costs_nothing() -> None:
    expected = 6 * (8_030_261_248 - 128_256 * 4096) + 12 * 32 * 4096 * 8192
    assert cost("model=llama_8b", sequence_length=8192) == expected


def test_bloom_176b_comes_near_the_usual_six_n() -> None:
    assert cost("model=bloom_176b", sequence_length=2048) == pytest.approx(6 * 176.2e9, rel=0.03)


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    model = compose(["model=llama_1b"]).model
    model.lora = Lora(r=8)
    count = parameter_count(meta_model(model))
    attention = 12 * 16 * 2048 * 512
    assert (
        flops_per_token(model_config(model), count, 512) == 4 * count.matmul + 2 * count.trainable + attention
    )


def test_mfu_of_a_known_run() -> None:
    # modded-nanogpt: 141.8 ms for 524,288 tokens on 8 H100s is 40 %.
    found = mfu(524_288 / 0.1418, cost("model=gpt2_124m", sequence_length=1024), 8, 989e12)
    assert found == pytest.approx(0.40, abs=0.01)
