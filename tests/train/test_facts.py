"""What a checkpoint says besides its tensors, and which models and optimizers it is refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from base.errors import UmbelError
from checkpoint import manifest as manifests
from configs.compose import compose
from support.engines import save
from support.runs import TINY
from support.small_models import ALONE
from train.engine import Engine
from train.facts import check_parameters, group_steps, groups_of, restore_optimizer, tied
from train.model import build_model
from train.torch_engine import TorchEngine

PLACES = ("data.path=corpus.jsonl",)
EMBEDDING = "transformer.word_embeddings.weight"


def engine(*overrides: str) -> Engine:
    return TorchEngine(compose([*TINY, *PLACES, *overrides]), ALONE)


def manifest_of(live: Engine, folder: Path) -> dict[str, Any]:
    return manifests.read(save(live, folder))


def test_tied_weights_are_told_by_their_other_name() -> None:
    assert tied(engine().model, with_frozen=False) == {"lm_head.weight": EMBEDDING}
    assert tied(engine("+model.config.tie_word_embeddings=false").model, with_frozen=True) == {}
    adapted = engine("++model.lora.r=2").model
    name = "base_model.model.lm_head.weight"
    assert tied(adapted, with_frozen=True) == {name: f"base_model.model.{EMBEDDING}"}
    assert tied(adapted, with_frozen=False) == {}, "what is not stored is named by no fact"


def test_groups_tell_their_update_rule_and_not_what_follows_or_may_change() -> None:
    live = engine("optimizer.weight_decay=0.3", "optimizer.eps=1e-7")
    live.optimizer.param_groups[1]["maximize"] = True
    live.optimizer.param_groups[1]["lr"] = 0.5
    decayed, spared = (group["hyperparameters"] for group in groups_of(live))
    rule = {"betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay"}
    assert decayed.keys() == spared.keys() == rule
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert (decayed["maximize"], spared["maximize"]) == (False, True)
    assert decayed["eps"] == 1e-7


def test_hyperparameters_reach_the_manifest_as_they_are(tmp_path: Path) -> None:
    live = engine()
    saved = manifest_of(live, tmp_path)["groups"]
    assert [group["names"] for group in saved] == [group["names"] for group in groups_of(live)]
    assert saved[0]["hyperparameters"]["betas"] == [0.9, 0.95]
    assert saved[1]["hyperparameters"]["weight_decay"] == 0.0


def test_step_counters_are_matched_by_parameter() -> None:
    one_group = engine("optimizer.decay_norms=true")
    two_groups = engine()
    names = [group["names"] for group in two_groups.optimizer.param_groups]
    swapped = [{"names": names[1], "step": 5}, {"names": names[0], "step": 7}]
    assert group_steps(two_groups, swapped) == [7, 5]
    assert group_steps(one_group, [{**group, "step": 7} for group in swapped]) == [7]
    restore_optimizer(one_group, {"groups": [{**group, "step": 7} for group in swapped], "loss_scaler": None})
    assert one_group.state.group_steps() == [7]


def test_parameters_of_one_group_that_were_updated_unequally_are_refused() -> None:
    names = [group["names"] for group in engine().optimizer.param_groups]
    saved = [{"names": names[0], "step": 7}, {"names": names[1], "step": 5}]
    with pytest.raises(UmbelError, match=rf"{EMBEDDING} was updated 7 times, .*layernorm\.weight 5 times"):
        group_steps(engine("optimizer.decay_norms=true"), saved)


# Another model -------------------------------------------------------------------------------------------


def test_the_same_model_is_accepted_frozen_or_not(tmp_path: Path) -> None:
    for name, overrides in (("whole", ()), ("adapted", ("++model.lora.r=2",))):
        live = engine(*overrides)
        check_parameters(manifest_of(live, tmp_path / name), live.model, tmp_path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.config.vocab_size=321", rf"{EMBEDDING} is saved as \[320, 32\], the model has \[321, 32\]"),
        ("model.config.n_layer=3", r"transformer\.h\.2\.\S+ is saved as nothing, the model has \["),
        ("model.config.n_layer=1", r"transformer\.h\.1\.\S+ is saved as \[.*\], the model has nothing"),
    ],
)
def test_another_shape_is_refused_by_its_first_parameter(tmp_path: Path, override: str, said: str) -> None:
    manifest = manifest_of(engine(), tmp_path)
    with pytest.raises(UmbelError, match=said):
        check_parameters(manifest, engine(override).model, tmp_path)


def test_what_was_trained_and_is_frozen_now_is_told_plainly(tmp_path: Path) -> None:
    frozen, live = engine(), engine()
    frozen.model.get_parameter("transformer.ln_f.weight").requires_grad_(False)
    with pytest.raises(UmbelError, match=r"transformer\.ln_f\.weight was trained and is frozen now"):
        check_parameters(manifest_of(live, tmp_path), frozen.model, tmp_path)


def test_what_was_frozen_and_trains_now_is_told_plainly(tmp_path: Path) -> None:
    live = engine("++model.lora.r=2")
    manifest = manifest_of(live, tmp_path)
    for parameter in live.model.parameters():
        parameter.requires_grad_(True)
    with pytest.raises(UmbelError, match=rf"{EMBEDDING} was frozen and trains now"):
        check_parameters(manifest, live.model, tmp_path)


def test_frozen_weights_may_be_missing_only_where_a_base_gives_them() -> None:
    model = build_model(compose([*TINY, *PLACES, "++model.lora.r=2"]).model, seed=1)
    trained = {name: list(one.shape) for name, one in model.named_parameters() if one.requires_grad}
    manifest = {"parameters": trained, "groups": [{"names": list(trained)}], "extra": {"base": {}}}
    check_parameters(manifest, model, Path("step"))
    with pytest.raises(UmbelError, match=rf"{EMBEDDING} is saved as nothing"):
        check_parameters(manifest | {"extra": {}}, model, Path("step"))
    model.get_parameter(f"base_model.model.{EMBEDDING}").requires_grad_(True)
    with pytest.raises(UmbelError, match=rf"{EMBEDDING} is saved as nothing"):
        check_parameters(manifest, model, Path("step"))
