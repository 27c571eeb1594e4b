from __future__ import annotations

from pathlib import Path

import pytest

from configs.compose import compose
from launch.paths import absolute_paths


def test_local_paths_mean_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    config = compose(["experiment=finetune", "model.pretrained=base", "data.path=chats/*.jsonl"])
    config.data.tokenizer.path = "base"
    made = absolute_paths(config)
    assert (made.model.pretrained, made.data.tokenizer.path) == (str(tmp_path / "base"),) * 2
    assert made.data.path == str(tmp_path / "chats" / "*.jsonl")
    assert config.data.path == "chats/*.jsonl"
    monkeypatch.chdir("/")
    assert absolute_paths(made) == made


def test_sources_too_and_not_python() -> None:
    config = compose(["data.sources={a: {path: a.txt}, b: {kind: python}}", "run.name=a"])
    sources = absolute_paths(config).data.sources
    assert (sources["a"].path, sources["b"].path) == (str(Path.cwd() / "a.txt"), None)


def test_names_of_the_hub_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(
        ["experiment=finetune", "model.pretrained=some/model", "data.path='s3://bucket/chats.jsonl'"]
    )
    assert absolute_paths(config) == config
    config = compose(["data.sources={a: {kind: hub, path: some/data}}", "run.name=a"])
    assert absolute_paths(config) == config


def test_a_relative_run_lies_in_the_scratch_of_the_cluster(tmp_path: Path) -> None:
    def made(*overrides: str) -> tuple[str, str | None]:
        config = absolute_paths(compose(["cluster.scratch=/scr", "cluster.cache=/shared", *overrides]))
        return config.run.dir, config.data.cache_dir

    assert made() == ("/scr/runs", "/shared/umbel")
    assert made("run.dir=/elsewhere", "data.cache_dir=/mine") == ("/elsewhere", "/mine")
    again = absolute_paths(absolute_paths(compose(["cluster.scratch=/scr"])))
    assert again.run.dir == "/scr/runs"
    assert absolute_paths(compose([])).run.dir == "runs"


def test_an_image_that_lies_here_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.sif").touch()
    for image, path in (("here.sif", f"{tmp_path}/here.sif"), ("docker://a/b", "docker://a/b")):
        config = absolute_paths(compose([f"cluster.container={{image: '{image}'}}"]))
        assert config.cluster.container is not None
        assert config.cluster.container.image == path
