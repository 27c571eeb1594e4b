"""Which architectures can keep documents apart, found by trying, as the runs' own check does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from base.errors import UmbelError
from configs.compose import compose
from configs.schema import Model, RunConfig
from support.small_models import ALONE
from train.architecture import decoder_config, model_config
from train.document_mask import FIRST, SECOND, VOCABULARY, check_document_mask, small_model
from train.engine import build_engine
from train.masking import logits_of

PRESETS = sorted(file.stem for file in Path(__file__).parents[2].glob("configs/model/*.yaml"))
TRIED = [name for name in PRESETS if name != "pretrained"]
APART = [name for name in TRIED if not name.startswith("bloom")]


def run(*overrides: str) -> RunConfig:
    config = compose(["data.path=none.jsonl", *overrides])
    config.data.intra_document_mask = True
    return config


def two_documents(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [2, FIRST + SECOND] with other first documents and the same second one, and their positions."""
    ids = torch.randint(VOCABULARY, (2, FIRST + SECOND), generator=torch.Generator().manual_seed(seed))
    ids[1, FIRST:] = ids[0, FIRST:]
    return ids, torch.cat([torch.arange(FIRST), torch.arange(SECOND)]).expand(2, -1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("preset", APART)
@torch.no_grad()
def test_every_preset_but_bloom_keeps_documents_apart(preset: str, attention: str) -> None:
    torch.manual_seed(0)
    model = small_model(model_config(run(f"model={preset}").model), attention)
    ids, positions = two_documents(seed=1)
    one = logits_of(model, ids[:1], positions[:1])[0, FIRST:]
    other = logits_of(model, ids[1:], positions[1:])[0, FIRST:]
    alone = logits_of(model, ids[:1, FIRST:], positions[:1, FIRST:])[0]
    assert one.equal(other), "another first document must not change a bit of the second"
    torch.testing.assert_close(one, alone, rtol=1e-5, atol=1e-5)
    whole = logits_of(model, ids[:1])[0, FIRST:]
    assert not torch.allclose(whole, alone, rtol=1e-2, atol=1e-2), "without the mask it must show"


@pytest.mark.parametrize("preset", TRIED)
def test_the_check_finds_out_which(preset: str) -> None:
    state = torch.get_rng_state()
    config = run(f"model={preset}")
    if preset in APART:
        check_document_mask(config)
    else:
        with pytest.raises(UmbelError) as caught:
            check_document_mask(config)
        assert str(caught.value).startswith("data.intra_document_mask: bloom does not keep the documents")
        assert "set it to false" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("arch", ["opt", "falcon", "mamba", "jamba"])
def test_what_counts_its_own_positions_or_has_a_memory_is_refused(arch: str) -> None:
    """OPT counts positions itself, Falcon ignores them, state-space layers carry over whatever the mask."""
    config = run("model=llama_tiny")
    config.model = Model(arch=arch)
    with pytest.raises(UmbelError, match=r"data\.intra_document_mask: .*" + arch):
        check_document_mask(config)


@pytest.mark.parametrize("arch", ["mistral", "qwen2", "gemma2", "gemma3_text", "phi3", "gpt_neox", "mixtral"])
def test_other_architectures_pass_untold(arch: str) -> None:
    config = run("model=llama_tiny")
    config.model = Model(arch=arch)
    check_document_mask(config)


def test_nothing_is_tried_without_the_mask() -> None:
    config = run("model=bloom_tiny")
    config.data.intra_document_mask = False
    check_document_mask(config)


def test_a_small_model_is_small() -> None:
    small = small_model(decoder_config(run("model=llama_8b").model), "sdpa")
    assert sum(parameter.numel() for parameter in small.parameters()) < 2_000_000


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_sees_what_sdpa_sees() -> None:
    shape = model_config(Model(arch="llama"))
    made: list[Any] = []
    for attention in ("sdpa", "flex_attention"):
        torch.manual_seed(0)
        made.append(small_model(shape, attention))
    ids, positions = two_documents(seed=2)
    sdpa, flex = (logits_of(model, ids, positions) for model in made)
    assert made[1].config._attn_implementation == "flex_attention"
    torch.testing.assert_close(sdpa, flex, rtol=1e-5, atol=1e-5)


def test_flex_attention_does_not_train_on_the_cpu() -> None:
    config = run("model=llama_tiny", "model.attention=flex_attention")
    with pytest.raises(UmbelError, match=r"model\.attention=flex_attention: has no backward pass on the CPU"):
        build_engine(config, ALONE, 1)
