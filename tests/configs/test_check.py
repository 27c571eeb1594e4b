from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UmbelError
from configs.check import warnings
from configs.compose import compose, from_dict, to_dict
from configs.plain import flatten

PLAIN = to_dict(compose([]))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["run.name='a b'"], "run.name: 'a b' cannot name a folder; use letters, digits, . _ -"),
        (["run.name=../up"], "run.name: '../up' cannot name a folder; use letters, digits, . _ -"),
        (
            ["supervision.disk_alerts=[0.5,1]"],
            "supervision.disk_alerts: must be shares between 0 and 1, not 1.0",
        ),
        (["supervision.straggler=0"], "supervision.straggler: must be a number above 0, not 0.0"),
        (["supervision.blame=0"], "supervision.blame: must be a number from 1 on, not 0"),
        (["run.seed=-1"], "run.seed: must be a number from 0 on, not -1"),
        (
            ["model.pretrained=org/name"],
            "model: needs exactly one of model.arch and model.pretrained; "
            "for model.pretrained add model=pretrained, or drop it",
        ),
        (
            ["experiment=finetune"],
            "model: needs exactly one of model.arch and model.pretrained; "
            "set model.pretrained=…, or model=bloom_560m",
        ),
        (
            ["~model.arch", "model.pretrained=org/name"],
            "model.config: cannot change the shape of pretrained org/name; drop it",
        ),
        (["model.revision=main"], "model.revision: has a meaning only with model.pretrained"),
        (
            ["model.config.n_head=3"],
            "model.config: hidden size 128 is not heads × head_dim: 3 heads do not divide it; "
            "nearest that fit: 126 or 129",
        ),
        (
            ["model.arch=llama", "model.config.head_dim=16"],
            "model.config.head_dim: 4 heads × head_dim 16 = 64, but hidden size is 128; "
            "set it to 32, or leave it out",
        ),
        (
            ["model.config.hidden_size=wide"],
            "model.config.hidden_size: must be a whole number above 0, not 'wide'",
        ),
        (
            ["model.config.max_position_embeddings=128"],
            "data.sequence_length: 256 is beyond the model's 128 positions; set it to at most 128",
        ),
        (
            ["data=local"],
            "data: needs either data.sources or data.path; for example data=python or data.path=my.jsonl",
        ),
        (["data.held_out=0.5"], "data.held_out: must be at least 0 and below 0.5"),
        (["data.sequence_length=1"], "data.sequence_length: must be a number from 2 on, not 1"),
        (
            ["data.sources.code.weight=-1"],
            "data.sources.code.weight: must be a number from 0 on, not -1.0",
        ),
        (
            ["data.sources={code: {weight: 0}, tests: {weight: 0}, prose: {weight: 0}}"],
            "data.sources: weights sum to 0; give at least one a weight above 0",
        ),
        (
            ["data.sources.code.path=x"],
            "data.sources.code: kind=python reads no path, every other kind does; drop the path",
        ),
        (
            ["data.sources.mine={kind: jsonl}"],
            "data.sources.mine: kind=python reads no path, every other kind does; set data.sources.mine.path",
        ),
        (
            ["data.sources.code.weight=inf"],
            "data.sources.code.weight: must be a number from 0 on, not inf",
        ),
        (
            ["data.sources.mine={path: x.jsonl, part: code}"],
            "data.sources.mine.part: has a meaning only with kind=python; drop it",
        ),
        (
            ["data.sources.mine={kind: hub, path: x.jsonl}"],
            "data.sources.mine.path: must be org/name, not 'x.jsonl'",
        ),
        (
            ["data.sources.mine={path: x.jsonl, revision: main}"],
            "data.sources.mine.revision: has a meaning only with kind=hub; drop it",
        ),
        (
            ["data.sources.mine={path: x.jsonl, split: test}"],
            "data.sources.mine.split: has a meaning only with kind=hub; drop it",
        ),
        (
            ["data.sources.mine={path: 's3://key@bucket/x'}"],
            "data.sources.mine.path: holds credentials; leave them to the environment "
            "(AWS_ACCESS_KEY_ID, HF_TOKEN, …), and give the bare URL",
        ),
        (
            ["data.path='https://host/x.jsonl?expires=1&X-Amz-Signature=0a1b'"],
            "data.path: holds credentials; leave them to the environment "
            "(AWS_ACCESS_KEY_ID, HF_TOKEN, …), and give the bare URL",
        ),
        (
            ["data.sources.mine={path: x.jsonl, template: '{title}', field: body}"],
            "data.sources.mine: template and field exclude each other; "
            "drop data.sources.mine.field or data.sources.mine.template",
        ),
        (
            ["data.sources.code.template='{title}'"],
            "data.sources.code.template: kind=python has no columns; drop it",
        ),
        (
            ["data.sources.code.filters.columns={language: [en]}"],
            "data.sources.code.filters.columns: kind=python has no columns; drop it",
        ),
        (
            ["data.sources.mine={path: x.jsonl, filters: {columns: {language: []}}}"],
            "data.sources.mine.filters.columns.language: accepts no value; list some, or drop it",
        ),
        (
            ["data.sources.code.filters.min_chars=-1"],
            "data.sources.code.filters.min_chars: must be a number from 0 on, not -1",
        ),
        (
            ["data.sources.code.filters={min_chars: 10, max_chars: 9}"],
            "data.sources.code.filters.max_chars: lets no text pass: 9 is below 10",
        ),
        (
            ["data.sources.code.filters.max_chars=0"],
            "data.sources.code.filters.max_chars: lets no text pass: 0 is below 1",
        ),
        (
            ["data.sources.code.filters.excludes='*'"],
            "data.sources.code.filters.excludes: is no regular expression "
            "(nothing to repeat at position 0); mend it; in YAML, put it between single quotes",
        ),
        (
            ["data.sources.code.filters.matches='['"],
            "data.sources.code.filters.matches: is no regular expression "
            "(unterminated character set at position 0); mend it; in YAML, put it between single quotes",
        ),
        (
            ["data.sources.code.max_epochs=0"],
            "data.sources.code.max_epochs: must be a number above 0, not 0.0",
        ),
        (["data.mixture.temperature=0"], "data.mixture.temperature: must be a number above 0, not 0.0"),
        (["data.mixture.max_epochs=nan"], "data.mixture.max_epochs: must be a number above 0, not nan"),
        (["data.cache_gb=0"], "data.cache_gb: must be a number above 0, not 0.0"),
        (["data.workers=-1"], "data.workers: must be a number from 0 on, not -1"),
        (["data.shuffle_window=0"], "data.shuffle_window: must be a number from 1 on, not 0"),
        (
            ["data.phases=[{from_tokens: 0, weights: {code: 1}}]"],
            "data.phases[0].from_tokens: must be a number above 0, not 0; "
            "what holds from the start are the sources' own weights",
        ),
        (
            ["data.phases=[{from_tokens: 5e4, weights: {code: 1}}, {from_tokens: 4e4, weights: {code: 1}}]"],
            "data.phases[1].from_tokens: 40000 is not a sequence after the phase before; "
            "list the phases in order",
        ),
        (
            ["data.phases=[{from_tokens: 256, weights: {code: 1}}, {from_tokens: 255, weights: {code: 1}}]"],
            "data.phases[1].from_tokens: 255 is not a sequence after the phase before; "
            "list the phases in order",
        ),
        (
            ["data.phases=[{from_tokens: 5e4, weights: {cod: 1}}]"],
            "data.phases[0].weights.cod: no such source; did you mean 'code'?",
        ),
        (
            ["data.path=x.jsonl", "data.phases=[{from_tokens: 5e4, weights: {mine: 1}}]"],
            "data.phases[0].weights.mine: no such source; known: data",
        ),
        (
            ["data.phases=[{from_tokens: 5e4, weights: {code: -1, tests: 2}}]"],
            "data.phases[0].weights.code: must be a number from 0 on, not -1.0",
        ),
        (
            ["data.phases=[{from_tokens: 5e4, weights: {code: 0}}]"],
            "data.phases[0].weights: weights sum to 0; give at least one a weight above 0",
        ),
        (
            ["data.phases=[{from_tokens: 5e4, weights: {}}]"],
            "data.phases[0].weights: names no source",
        ),
        (["data.skip=[[3,3]]"], "data.skip[0]: must be [first, end] with 0 ≤ first < end, not [3, 3]"),
        (["data.skip=[[1,2],[3]]"], "data.skip[1]: must be [first, end] with 0 ≤ first < end, not [3]"),
        (["data.skip=[[-1,2]]"], "data.skip[0]: must be [first, end] with 0 ≤ first < end, not [-1, 2]"),
        (
            ["data.skip=[[5,9],[8,12]]"],
            "data.skip[1]: [8, 12] begins before 9, where the one before ends; "
            "list the ranges in order, and join those that overlap",
        ),
        (
            ["data.mode=streaming", "data.skip=[[10,100]]"],
            "data.skip[0]: 90 sequences are no multiple of schedule.global_batch=64, "
            "as data.mode=streaming needs; skip [10, 138]",
        ),
        (
            ["data.mode=streaming", "data.packing=best_fit"],
            "data.packing: best_fit looks at all documents first, so it needs data.mode=prepared; "
            "set it to concat, or data.mode=prepared",
        ),
        (["optimizer.lr=-1e-3"], "optimizer.lr: must be a number from 0 on, not -0.001"),
        (["optimizer.lr=nan"], "optimizer.lr: must be a number from 0 on, not nan"),
        (["optimizer.weight_decay=inf"], "optimizer.weight_decay: must be a number from 0 on, not inf"),
        (["optimizer.betas=[0.9,1]"], "optimizer.betas: must be two numbers in [0, 1)"),
        (["optimizer.betas=[0.9]"], "optimizer.betas: must be two numbers in [0, 1)"),
        (["schedule.steps=0"], "schedule.steps: must be a number from 1 on, not 0"),
        (
            ["schedule.steps=50"],
            "schedule.warmup_steps: 100 does not fit into schedule.steps = 50; set it to at most 50",
        ),
        (["schedule.min_lr_ratio=1.5"], "schedule.min_lr_ratio: must be between 0 and 1"),
        (
            ["schedule=wsd", "schedule.decay_steps=901"],
            "schedule.decay_steps: 901 does not fit into the 900 steps after the warm-up; "
            "set it to at most 900",
        ),
        (
            ["schedule.batch_ramp={start: 16, increment: 7, sequences: 100}"],
            "schedule.batch_ramp: increments of 7 from 16 do not reach global_batch 64; "
            "choose an increment that divides global_batch − start",
        ),
        (
            ["schedule.batch_ramp={start: 16, increment: 0, sequences: 100}"],
            "schedule.batch_ramp.increment: must be a number from 1 on, not 0",
        ),
        (
            ["parallelism.zero_stage=2"],
            "parallelism.engine: zero_stage 2 needs DeepSpeed; set it to deepspeed",
        ),
        (
            ["parallelism.offload_optimizer=true"],
            "parallelism.offload_optimizer: needs zero_stage 1, 2 or 3",
        ),
        (
            ["parallelism=zero2", "parallelism.offload_parameters=true"],
            "parallelism.offload_parameters: needs zero_stage 3",
        ),
        (["parallelism.micro_batch=0"], "parallelism.micro_batch: must be a number from 1 on, not 0"),
        (
            ["parallelism=ddp", "parallelism.processes=3"],
            "schedule.global_batch: 64 is not divisible by 3 processes × micro_batch 1 = 3; "
            "nearest that are: 63 or 66; or processes: 1, 2, 4",
        ),
        (
            ["schedule.global_batch=4", "parallelism.micro_batch=3", "parallelism.processes=1"],
            "schedule.global_batch: 4 is not divisible by 1 processes × micro_batch 3 = 3; "
            "nearest that are: 3 or 6",
        ),
        (["tracker.log_every=0"], "tracker.log_every: must be a number from 1 on, not 0"),
    ],
)
def test_nonsense_is_refused_with_its_place_and_its_remedy(overrides: list[str], line: str) -> None:
    with pytest.raises(UmbelError) as caught:
        compose(overrides)
    assert str(caught.value) == line
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a1B2" * 8,
        "sk-" + "a1B2" * 8,
        "sk-proj-" + "a1B2" * 8,
        "wandb_v1_" + "a1B2" * 8,
        "ghp_" + "a1B2" * 9,
        "s3://key:secret@bucket/corpus",
    ],
)
@pytest.mark.parametrize("key", ["data.path", "model.config.note", "tracker.project", "samples.prompts"])
def test_secrets_are_refused_and_not_repeated(key: str, secret: str) -> None:
    value = f"['{secret}']" if key == "samples.prompts" else f"'{secret}'"
    with pytest.raises(UmbelError) as caught:
        compose([f"{key}={value}"])
    assert str(caught.value).startswith(f"{key}: holds a secret")
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "innocent",
    ["s3://bucket/corpus", "hf_hub", "org/sk-learn-docs", "https://example.org:8080/a@b", "0" * 40],
)
def test_what_only_looks_like_a_secret_passes(innocent: str) -> None:
    assert compose([f"data.path='{innocent}'"]).data.path == innocent


def test_a_weight_of_zero_switches_one_source_off() -> None:
    assert compose(["data.sources.code.weight=0"]).data.sources["code"].weight == 0


def test_zero_3_alone_is_only_a_warning() -> None:
    config = compose(["parallelism=zero3", "parallelism.processes=1"])
    (note,) = warnings(config, world_size=1)
    assert "zero_stage=3" in note
    assert warnings(config, world_size=2) == []
    assert warnings(compose(["parallelism=zero3_offload"]), world_size=1) == []
    assert warnings(compose([]), world_size=2) == ["parallelism=single with 2 processes runs as ddp"]


def test_a_phase_beyond_the_end_is_only_a_warning() -> None:
    phases = "data.phases=[{from_tokens: 5e4, weights: {code: 1}}, {from_tokens: 1e9, weights: {prose: 1}}]"
    assert warnings(compose([phases]), world_size=1) == [
        "data.phases[1] never begins: the run ends after 16,384,000 tokens"
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.skip=[[0,3],[3,7],[100,101]]"],
        ["data.mode=streaming", "data.skip=[[3,67],[128,256]]"],
        ["data.phases=[{from_tokens: 1, weights: {code: 0, prose: 1}}]"],
        ["data.path=x.jsonl", "data.phases=[{from_tokens: 1, weights: {data: 1}}]"],
        ["data.sources.mine={kind: hub, path: org/some.name, split: test, config: en, revision: main}"],
        ["data.sources.mine={path: 'hf://datasets/org/name@main/x.parquet', template: '{a}: {b}'}"],
        ["data.packing=none", "data.intra_document_mask=true"],
    ],
)
def test_what_makes_sense_passes(overrides: list[str]) -> None:
    compose(overrides)


KEYS = sorted(flatten(PLAIN))
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2, 64, 0.5, math.inf, math.nan])
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers() | st.text(max_size=4), max_size=3)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=3)
)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=3))
def test_any_value_in_any_key_is_taken_or_refused_in_one_line(changes: list[tuple[str, Any]]) -> None:
    changed = to_dict(from_dict(PLAIN))
    for key, value in changes:
        *path, last = key.split(".")
        inner = changed
        for name in path:
            inner = inner[name]
        inner[last] = value
    with suppress(UmbelError):
        assert to_dict(from_dict(changed)).keys() == PLAIN.keys()
