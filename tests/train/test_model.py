"""Models from their shape and from folders; and every way in which that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from base.errors import UmbelError
from configs.compose import compose
from configs.schema import Lora, Model, Optimizer
from train.model import (
    build_model,
    check_shape,
    meta_model,
    model_config,
    parameter_count,
    parameter_groups,
    vocab_size,
)

BLOOM = Model(arch="bloom", config={"hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64})
GPT2 = Model(
    arch="gpt2", config={"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 16}
)
LLAMA = Model(
    arch="llama",
    config={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
    },
)


def changed(model: Model, **config: object) -> Model:
    return Model(arch=model.arch, config={**model.config, **config})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_model(GPT2, seed=1).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_is_fp32_trains_and_keeps_no_cache() -> None:
    model = build_model(BLOOM, seed=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.training
    assert model(torch.zeros((1, 4), dtype=torch.long)).past_key_values is None


@pytest.mark.parametrize(("model", "implementation"), [(BLOOM, "eager"), (GPT2, "sdpa"), (LLAMA, "sdpa")])
def test_auto_attention_is_sdpa_where_there_is_one(model: Model, implementation: str) -> None:
    assert build_model(model, 1).config._attn_implementation == implementation


@pytest.mark.parametrize("model", [BLOOM, GPT2, LLAMA])
def test_activation_checkpointing_changes_no_gradient(model: Model) -> None:
    checkpointed = Model(arch=model.arch, config=model.config, activation_checkpointing=True)
    tokens = torch.arange(16).view(1, 16)
    gradients = []
    for shape in (model, checkpointed):
        built = build_model(shape, seed=3).eval().train(mode=True)
        for module in built.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        built(tokens).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in built.parameters()])
    assert any(
        "Checkpoint" in type(m).__name__ or getattr(m, "gradient_checkpointing", False)
        for m in built.modules()
    )
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Model(arch="blom"), "model.arch: 'blom' .* did you mean 'bloom'"),
        (Model(arch="t5"), "model.arch: 't5' is no causal language model"),
        (
            changed(BLOOM, hidden_sise=32),
            "model.config.hidden_sise: bloom has no such key; did you mean 'hidden_size'",
        ),
        (changed(LLAMA, hidden_size="wide"), "model.config: .*hidden_size.*int.*wide"),
        (changed(BLOOM, hidden_size=33), "model.config: no bloom has this shape .*divisible"),
        (changed(LLAMA, hidden_act="nonsense"), "model.config: no llama has this shape .*nonsense"),
        (
            Model(arch="bloom", attention="sdpa"),
            "model.attention: bloom does not support sdpa; it supports: eager",
        ),
        (Model(pretrained="./nowhere"), "model.pretrained=./nowhere: is no folder"),
        (Model(pretrained="nowhere"), "model.pretrained=nowhere: is no folder"),
    ],
)
def test_nonsense_is_refused_in_one_line(model: Model, said: str) -> None:
    with pytest.raises(UmbelError, match=said) as refused:
        meta_model(model)
    assert "\n" not in str(refused.value)


def test_special_tokens_beyond_a_smaller_vocabulary_are_left_out() -> None:
    assert model_config(GPT2).eos_token_id is None
    assert model_config(changed(GPT2, eos_token_id=5)).eos_token_id == 5
    assert vocab_size(GPT2) == 64


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model=gpt2_124m", "data.sequence_length=1024", "data.tokenizer.vocab_size=60000"],
            "tokenizer.vocab_size",
        ),
        (
            ["model=llama_tiny", "model.config.num_key_value_heads=3"],
            "num_key_value_heads: 3 .* these do: 1, 2, 4",
        ),
        (["model=olmo2_1b", "model.config.num_attention_heads=15"], "heads"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UmbelError, match=said):
        check_shape(compose(overrides))


def test_a_pretrained_models_positions_bound_the_sequence(folder: Path) -> None:
    config = compose(["model=pretrained", f'model.pretrained="{folder}"', "data.sequence_length=17"])
    with pytest.raises(UmbelError, match=r"data\.sequence_length: 17 is beyond the model's 16 positions"):
        check_shape(config)


def test_a_folder_is_loaded_as_it_was_saved(folder: Path) -> None:
    loaded, saved = build_model(Model(pretrained=str(folder)), seed=9), build_model(GPT2, seed=1)
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), saved.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_pickle_is_refused_with_its_conversion(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UmbelError, match=r"pickle.*save_pretrained"):
        build_model(Model(pretrained=str(folder)), seed=1)


def test_weights_that_do_not_fill_the_model_are_refused(folder: Path) -> None:
    trunk = AutoModelForCausalLM.from_pretrained(folder)
    weights = {name: tensor for name, tensor in trunk.state_dict().items() if "h.1." not in name}
    trunk.save_pretrained(folder, state_dict=weights)
    with pytest.raises(UmbelError, match="does not fill"):
        build_model(Model(pretrained=str(folder)), seed=1)


def test_code_from_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    code = {"AutoConfig": "surprise.C", "AutoModelForCausalLM": "surprise.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "surprise", "auto_map": code}))
    (folder / "surprise.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UmbelError):
        build_model(Model(pretrained=str(folder)), seed=1)
    assert not (tmp_path / "ran").exists()


def test_tied_weights_count_once() -> None:
    count = parameter_count(build_model(BLOOM, 1))
    assert count.total == count.matmul == meta_model(BLOOM).num_parameters()
    assert count.embedding == 64 * 32
    untied = parameter_count(meta_model(LLAMA))
    assert untied.matmul == untied.total - 64 * 32


def test_adapters_alone_train() -> None:
    model = Model(arch="gpt2", config=GPT2.config, lora=Lora(r=2))
    ours, again, other = (build_model(model, seed) for seed in (1, 1, 2))
    trained = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    # r × (in + out) of c_attn, attn.c_proj, c_fc and mlp.c_proj, in two layers.
    assert parameter_count(ours).trainable == 2 * 2 * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))
    weights = [dict(built.named_parameters()) for built in (ours, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in trained)


def names(groups: list[dict], weight_decay: float) -> set[str]:
    return {name for group in groups if group["weight_decay"] == weight_decay for name in group["names"]}


@pytest.mark.parametrize("model", [BLOOM, GPT2, LLAMA])
def test_groups_hold_every_parameter_once(model: Model) -> None:
    built = build_model(model, 1)
    groups = parameter_groups(built, Optimizer())
    assert sum(len(group["params"]) for group in groups) == len(list(built.parameters()))
    named = dict(built.named_parameters())
    for group in groups:
        assert all(named[name] is p for name, p in zip(group["names"], group["params"], strict=True))
    assert all("norm" in name or "ln_" in name or "bias" in name for name in names(groups, 0.0))
    assert all("bias" not in name and "norm" not in name for name in names(groups, 0.1))


def test_embeddings_and_norms_decay_by_option() -> None:
    built = build_model(GPT2, 1)
    spared = names(parameter_groups(built, Optimizer(decay_embeddings=False)), 0.0)
    assert {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight"} <= spared
    assert len(parameter_groups(built, Optimizer(decay_norms=True))) == 1


def test_groups_know_shapes_that_zero_has_taken_away() -> None:
    whole, partitioned = build_model(GPT2, 1), build_model(GPT2, 1)
    for parameter in partitioned.parameters():
        parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
    ours, theirs = (parameter_groups(model, Optimizer()) for model in (whole, partitioned))
    assert [group["names"] for group in ours] == [group["names"] for group in theirs]
    assert parameter_count(whole) == parameter_count(partitioned)
