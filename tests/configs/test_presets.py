"""Every preset composes, and every model preset is the model that was published."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from base.errors import UmbelError
from configs.batch import batch_divisor, check_batch, ramp_stages, sequences_at
from configs.compose import compose, groups
from train.model import check_shape, meta_model, parameter_count

# Model cards and papers; OLMo 2 and the larger SmolLM2 from their config.json.
PUBLISHED = {
    "bloom_560m": 559_214_592,
    "bloom_1b1": 1_065_314_304,
    "bloom_3b": 3_002_557_440,
    "bloom_7b1": 7_069_016_064,
    "bloom_176b": 176_247_271_424,
    "gpt2_124m": 124_439_808,
    "llama_1b": 1_235_814_400,
    "llama_8b": 8_030_261_248,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1b7": 1_711_376_384,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
}
MODELS = sorted(set(groups()["model"]) - {"pretrained"})
GIVEN = {"finetune": ["model.pretrained=org/name", "data.path=my.jsonl"]}
GIVEN["finetune_lora"] = GIVEN["finetune"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_preset_counts_what_transformers_counts(name: str) -> None:
    model = compose([f"model={name}"]).model
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(str(model.arch), **model.config))
    count = parameter_count(meta_model(model))
    assert count.total == count.trainable == plain.num_parameters()
    assert count.total == PUBLISHED.get(name, count.total)


def test_every_published_model_has_a_preset() -> None:
    assert set(PUBLISHED) | {"bloom_tiny", "llama_tiny"} == set(MODELS)


@pytest.mark.parametrize("name", groups()["experiment"])
def test_an_experiment_composes(name: str) -> None:
    config = compose([f"experiment={name}", *GIVEN.get(name, [])])
    assert config.run.name == name
    if config.model.pretrained is None:
        check_shape(config)


@pytest.mark.parametrize("name", groups()["schedule"])
def test_a_schedule_composes(name: str) -> None:
    schedule = compose([f"schedule={name}"]).schedule
    assert name in (schedule.name, "bloom_ramp")


def test_fine_tuning_takes_its_model_and_data_from_the_command_line() -> None:
    config = compose(["experiment=finetune_lora", "model.pretrained=org/name", "data.path=my.jsonl"])
    assert (config.model.arch, config.model.pretrained, config.data.path) == (None, "org/name", "my.jsonl")
    assert config.model.lora is not None
    assert config.data.packing == "none"
    with pytest.raises(UmbelError, match=r"model\.arch and model\.pretrained"):
        compose(["experiment=finetune", "data.path=my.jsonl"])


def test_blooms_ramp_is_the_one_it_was_trained_with() -> None:
    schedule = compose(["schedule=bloom_ramp"]).schedule
    stages = ramp_stages(schedule)
    assert (stages[0][0], stages[-1][0]) == (192, 2032)
    assert sum(batch * steps for batch, steps in stages) == pytest.approx(9_765_625, rel=1e-3)
    assert sequences_at(schedule, schedule.steps) == pytest.approx(220_000_000, rel=1e-4)
    assert batch_divisor(schedule) == 16


def test_bloom_176b_can_be_split_over_256_gpus() -> None:
    config = compose(["experiment=bloom_176b"])
    check_batch(config, 256)
    assert sequences_at(config.schedule, config.schedule.steps) == pytest.approx(220_000_000, rel=1e-4)
