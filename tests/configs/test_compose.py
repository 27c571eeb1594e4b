from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from base.errors import UmbelError
from configs.compose import compose, differing_keys, from_dict, groups, is_defining, load, save, to_dict
from configs.plain import flatten
from configs.schema import EXECUTION_KEYS, EXECUTION_SECTIONS, RunConfig

PRESETS = [(group, name) for group, names in groups().items() for name in names]
# What a preset cannot know by itself.
COMPANIONS = {
    ("data", "local"): ["data.path=my.jsonl"],
    ("model", "pretrained"): ["model.pretrained=org/name"],
    ("experiment", "finetune"): ["model.pretrained=org/name", "data.path=my.jsonl"],
    ("experiment", "finetune_lora"): ["model.pretrained=org/name", "data.path=my.jsonl"],
}


def refusal(*overrides: str, config_dir: Path | None = None) -> str:
    with pytest.raises(UmbelError) as caught:
        compose(list(overrides), config_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_every_preset_composes(group: str, name: str) -> None:
    config = compose([f"{group}={name}", *COMPANIONS.get((group, name), [])])
    if group in ("parallelism", "cluster", "tracker"):
        assert getattr(config, group).name == name


def test_the_groups_of_the_design_are_there() -> None:
    wanted = {"model", "data", "parallelism", "optimizer", "schedule", "cluster", "tracker", "experiment"}
    assert wanted <= groups().keys()
    assert groups()["parallelism"] == ["ddp", "single", "zero1", "zero2", "zero3", "zero3_offload"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("modl=bloom_tiny", "modl=bloom_tiny: no such group; did you mean 'model'?"),
        ("model=bloom_tiney", "model=bloom_tiney: no preset 'bloom_tiney'; did you mean 'bloom_tiny'?"),
        ("optimizer.lrr=1", "optimizer.lrr: no such key; did you mean 'lr'?"),
        ("optimiser.lr=1", "optimiser.lr=1: no such group; did you mean 'optimizer'?"),
        ("hydra.run.dir=x", "hydra.run.dir=x: no such group; known: "),
        ("run=x", "run=x: has no presets; set its keys: run.…=…"),
        ("optimizer.lr", "'optimizer.lr': is not an override; write key=value, or group=preset"),
        ("optimizer.lr=fast", "optimizer.lr: must be a number, not 'fast'"),
        ("data.path=a,b", "data.path=a,b: cannot be read as an override; quote a value that holds"),
        ("run.name=${nothing}", "config: Interpolation key 'nothing' not found"),
        ("~model", "model: must be given; set model=… on the command line"),
    ],
)
def test_a_wrong_override_is_refused_by_name(override: str, line: str) -> None:
    assert refusal(override).startswith(line)


def test_a_plain_key_sets_what_the_preset_has_not() -> None:
    config = compose(["model.config.n_layer=3", "model.config.layer_norm_epsilon=1e-6"])
    assert config.model.config["n_layer"] == 3
    assert config.model.config["layer_norm_epsilon"] == 1e-6
    assert config.model.config["hidden_size"] == 128


def test_a_path_alone_switches_to_local_data() -> None:
    config = compose(["data.path=my.jsonl"])
    assert config.data.path == "my.jsonl"
    assert config.data.sources == {}
    assert compose(["++data.path=my.jsonl"]) == config
    assert compose(["data=local", "data.path=my.jsonl"]) == config
    assert refusal("data=python", "data.path=my.jsonl").startswith("data: needs either")


def test_a_quoted_path_may_hold_anything() -> None:
    for path in ("a,b.jsonl", "a=b (1).jsonl", "{x}/[y]", "with space", "ünïcode"):
        assert compose([f"data.path='{path}'"]).data.path == path


def test_the_command_line_wins_over_the_experiment_and_the_later_over_the_earlier() -> None:
    assert compose(["experiment=demo"]).schedule.steps != 77
    assert compose(["schedule.steps=77", "experiment=demo"]).schedule.steps == 77
    assert compose(["experiment=demo", "schedule.steps=77"]).schedule.steps == 77
    assert compose(["schedule.steps=300", "schedule.steps=400"]).schedule.steps == 400


@given(st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_overrides_of_different_keys_may_come_in_any_order(shuffle: random.Random) -> None:
    overrides = [
        "schedule=wsd",
        "schedule.steps=777",
        "model.config.n_layer=3",
        "optimizer.lr=1e-4",
        "run.seed=7",
    ]
    expected = compose(overrides)
    shuffle.shuffle(overrides)
    assert compose(overrides) == expected


def test_groups_of_ones_own_stand_beside_the_built_in(tmp_path: Path) -> None:
    folder = tmp_path / "my, own [configs]"
    (folder / "cluster").mkdir(parents=True)
    (folder / "cluster" / "ours.yaml").write_text("name: ours\ninstitution: us\nnodes: 2\n")
    config = compose(["cluster=ours", "model=bloom_tiny"], folder)
    assert (config.cluster.institution, config.cluster.nodes) == ("us", 2)
    assert groups(folder)["cluster"] == sorted([*groups()["cluster"], "ours"])
    assert refusal("cluster=our", config_dir=folder).endswith("did you mean 'ours'?")
    (folder / "cluster" / "ours.yaml").write_text("nmae: ours\n")
    assert refusal("cluster=ours", config_dir=folder).startswith("cluster.nmae: no such key")


def test_a_preset_of_ones_own_cannot_hide_a_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "bloom_tiny.yaml").write_text("arch: gpt2\n")
    assert "model=bloom_tiny is Umbel's own already; rename it" in refusal(config_dir=tmp_path)


def test_a_config_folder_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    assert refusal(config_dir=tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'}: no such folder")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("arch: [gpt2\n")
    assert "mine.yaml:2: is not YAML" in refusal("model=mine", config_dir=tmp_path)


# Frozen runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", ["demo"])
def test_a_frozen_run_comes_back_the_same(tmp_path: Path, experiment: str) -> None:
    config = compose(
        [f"experiment={experiment}", "schedule.batch_ramp={start: 8, increment: 4, sequences: 100}"]
    )
    save(config, tmp_path / "run.yaml")
    assert load(tmp_path / "run.yaml") == config
    assert list(yaml.safe_load((tmp_path / "run.yaml").read_text())) == list(to_dict(config))


@example(project="a\x85b", prompts=["\u2028", "日本"], lr=0.0, extra={"\x85": None})
@given(
    project=st.text(),
    prompts=st.lists(st.text()),
    lr=st.floats(0, 1),
    extra=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.floats(0, 1)),
)
def test_any_value_survives_freezing(
    tmp_path_factory: pytest.TempPathFactory,
    project: str,
    prompts: list[str],
    lr: float,
    extra: dict[str, Any],
) -> None:
    plain = to_dict(compose_default())
    plain["tracker"]["project"], plain["samples"]["prompts"], plain["optimizer"]["lr"] = project, prompts, lr
    plain["model"]["config"] = {f"x_{key}": value for key, value in extra.items()}
    config = from_dict(plain)
    path = tmp_path_factory.mktemp("frozen") / "run.yaml"
    save(config, path)
    assert load(path) == config


@functools.cache
def compose_default() -> RunConfig:
    return compose([])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"run: [", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"", "config: must be a group of keys, not None"),
        (b"- 1", "config: must be a group of keys, not [1]"),
        (b"run: {name: a, sede: 1}", "run.sede: no such key; did you mean 'seed'?"),
    ],
)
def test_a_broken_frozen_run_is_refused_with_its_file(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UmbelError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {complaint}")


def test_an_object_in_a_frozen_run_is_never_made(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"run: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(UmbelError, match="is not YAML"):
        load(path)
    assert not (tmp_path / "made").exists()


def test_only_defining_keys_make_another_run() -> None:
    old = compose([])
    execution = compose(
        [
            "parallelism=zero2",
            "checkpoint.every=7",
            "tracker.project=x",
            "model.compile=true",
            "run.dir=elsewhere",
        ]
    )
    assert differing_keys(old, execution) == []
    new = compose(
        ["optimizer.lr=1e-4", "model.config.n_layer=3", "model.config.extra=1", "parallelism=zero2"]
    )
    assert differing_keys(old, new) == [
        ("model.config.extra", None, 1),
        ("model.config.n_layer", 4, 3),
        ("optimizer.lr", 3e-4, 1e-4),
    ]


def test_a_place_makes_no_other_run_but_what_is_read_does() -> None:
    old = compose(["experiment=finetune", "model.pretrained=/here/base", "data.path=/here/my.jsonl"])
    new = compose(["experiment=finetune", "model.pretrained=/there/base", "data.path=/there/my.jsonl"])
    assert differing_keys(old, new) == []
    mixture = compose(["data.sources={a: {path: a.txt, weight: 1}}"])
    moved = compose(["data.sources={a: {path: b/a.txt, weight: 2}}"])
    assert [key for key, _, _ in differing_keys(mixture, moved)] == ["data.sources.a.weight"]


def test_every_execution_key_exists() -> None:
    keys = flatten(to_dict(compose([])))
    assert set(EXECUTION_SECTIONS) <= set(RunConfig.__dataclass_fields__)
    assert set(EXECUTION_KEYS) <= set(keys)
    assert not any(is_defining(key) for key in EXECUTION_KEYS)
    assert is_defining("run.seed")
    assert is_defining("data.sequence_length")


@given(
    st.dictionaries(st.text("abc", min_size=1), st.integers() | st.dictionaries(st.text("abc"), st.none()))
)
def test_flattening_loses_no_value(value: dict[str, Any]) -> None:
    for key, item in flatten(value).items():
        inner: Any = value
        for name in key.split("."):
            inner = inner[name]
        assert inner == item
    assert len(flatten(value)) == sum(
        len(item) or 1 if isinstance(item, dict) else 1 for item in value.values()
    )
