from __future__ import annotations

from checkpoint.layers import layers_of

BLOOM = [
    "transformer.h.10.mlp.weight",
    "transformer.h.2.mlp.weight",
    "transformer.h.2.ln.bias",
    "transformer.ln_f.weight",
    "transformer.word_embeddings.weight",
]


def test_blocks_stand_between_what_embeds_and_the_rest_in_the_order_of_their_numbers() -> None:
    layers = layers_of([*BLOOM, "lm_head.weight", "scale"])
    assert list(layers) == [
        "transformer.word_embeddings",
        "transformer.h.2",
        "transformer.h.10",
        "lm_head",
        "scale",
        "transformer.ln_f",
    ]
    assert layers["transformer.h.2"] == ["transformer.h.2.mlp.weight", "transformer.h.2.ln.bias"]


def test_experts_stay_with_their_block() -> None:
    names = [f"model.layers.{block}.mlp.experts.{expert}.w1" for block in range(2) for expert in range(3)]
    assert list(layers_of(names)) == ["model.layers.0", "model.layers.1"]


def test_a_number_that_is_always_the_same_makes_no_block() -> None:
    assert list(layers_of([f"towers.0.blocks.{block}.w" for block in range(2)])) == [
        "towers.0.blocks.0",
        "towers.0.blocks.1",
    ]
    assert list(layers_of(["h.0.w", "h.0.b", "wte.weight"])) == ["wte", "h.0"]


def test_encoder_and_decoder_and_adapters() -> None:
    names = ["encoder.block.0.q.w", "encoder.block.1.q.w", "decoder.block.0.q.w", "decoder.block.1.q.w"]
    assert len(layers_of(names)) == 4
    assert list(
        layers_of(["base_model.model.h.1.attn.lora_A.default.weight", "base_model.model.h.0.x.lora_B.w"])
    ) == [
        "base_model.model.h.0",
        "base_model.model.h.1",
    ]


def test_names_that_begin_or_end_with_numbers_are_harmless() -> None:
    assert layers_of(["0.weight", "1.weight", "w.2", "7"]) == {
        "0": ["0.weight"],
        "1": ["1.weight"],
        "7": ["7"],
        "w": ["w.2"],
    }
