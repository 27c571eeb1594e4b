"""Initial weights follow from the seed alone, and are drawn as Transformers draws them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from base.errors import UmbelError
from configs.schema import Model
from train.initialize import initialize
from train.model import build_model, build_skeleton, model_config
from train.seeds import derive

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
MODELS = {
    "bloom": Model(arch="bloom", config={"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 512}),
    "gpt2": Model(arch="gpt2", config={"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 512}),
    "llama": Model(arch="llama", config=LLAMA),
    "llama_tied": Model(
        arch="llama", config={**LLAMA, "tie_word_embeddings": True, "initializer_range": 0.1}
    ),
    "olmo2": Model(arch="olmo2", config={**LLAMA, "num_key_value_heads": 4}),
}


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_distributed_as_transformers_own(name: str) -> None:
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(model_config(MODELS[name])).state_dict()
    for key, ours in build_model(MODELS[name], seed=5).state_dict().items():
        error = theirs[key].std() / max(1, ours.numel()) ** 0.5 + 1e-7
        assert abs(ours.mean() - theirs[key].mean()) < 6 * error, key
        if ours.numel() > 1000:
            assert ours.std() == pytest.approx(float(theirs[key].std()), rel=0.08), key


@pytest.mark.parametrize("name", MODELS)
def test_buffers_are_those_of_transformers(name: str) -> None:
    theirs = dict(AutoModelForCausalLM.from_config(model_config(MODELS[name])).named_buffers())
    for key, ours in build_model(MODELS[name], seed=5).named_buffers():
        assert torch.equal(ours, theirs[key]), key


@pytest.mark.parametrize("name", MODELS)
def test_another_seed_gives_other_weights(name: str) -> None:
    ours, theirs = (dict(build_model(MODELS[name], seed).named_parameters()) for seed in (1, 2))
    assert all(not torch.equal(ours[key], theirs[key]) for key in ours if ours[key].std() > 0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**63), before=st.integers(0, 2**32), threads=st.sampled_from([1, 2]))
def test_nothing_but_the_seed_matters(seed: int, before: int, threads: int) -> None:
    model, usual = MODELS["gpt2"], torch.get_num_threads()
    first = build_model(model, seed)
    torch.manual_seed(before)
    state = torch.get_rng_state()
    torch.set_num_threads(threads)
    try:
        assert same(first, build_model(model, seed))
    finally:
        torch.set_num_threads(usual)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_block_does_not_depend_on_those_around_it() -> None:
    config = MODELS["llama"].config
    deeper = Model(arch="llama", config={**config, "num_hidden_layers": 5})
    ours, theirs = (build_model(model, 1).state_dict() for model in (MODELS["llama"], deeper))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_layers_of_one_shape_differ() -> None:
    weights = build_model(MODELS["llama"], 1).state_dict()
    assert not torch.equal(
        weights["model.layers.0.mlp.up_proj.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    )
    assert len({derive(1, "weights", name) for name in weights}) == len(weights)


def test_weights_are_the_same_where_they_lie_in_bf16() -> None:
    ours, theirs = build_model(MODELS["gpt2"], 1), build_skeleton(MODELS["gpt2"]).bfloat16()
    initialize(theirs, 1)
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert right.dtype == torch.bfloat16
        assert torch.equal(left.bfloat16(), right)


@pytest.mark.parametrize("name", MODELS)
def test_partitioned_weights_are_gathered_a_block_at_a_time(name: str) -> None:
    """As under ZeRO-3: a parameter is empty but inside the context that gathers it."""
    model = build_skeleton(MODELS[name])
    whole = {parameter: parameter.data for parameter in model.parameters()}
    block = max(sum(p.numel() for p in layer.parameters()) for layer in _layers(model))
    largest = max(block, max(parameter.numel() for parameter in whole))
    for parameter in whole:
        parameter.data = torch.empty(0)

    @contextlib.contextmanager
    def gather(parameters: list[nn.Parameter]) -> Iterator[None]:
        assert sum(whole[parameter].numel() for parameter in parameters) <= largest
        for parameter in parameters:
            parameter.data = whole[parameter]
        yield
        for parameter in parameters:
            whole[parameter], parameter.data = parameter.data, torch.empty(0)

    initialize(model, 7, gather)
    for parameter, data in whole.items():
        parameter.data = data
    assert same(model, build_model(MODELS[name], 7))


def test_a_weight_that_transformers_leaves_unset_is_refused() -> None:
    model = build_skeleton(MODELS["gpt2"])
    model.transformer.register_parameter("odd", nn.Parameter(torch.zeros(3)))
    with pytest.raises(UmbelError, match=r"no initial weights for transformer\.odd"):
        initialize(model, 1)


def _layers(model: nn.Module) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))
