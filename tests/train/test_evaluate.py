from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from base.errors import UmbelError
from record.events import read_events
from record.folder import RunFolder
from support.runs import tiny, write_corpus
from support.small_models import train_here
from train.evaluate import evaluate_run


def two_sources(folder: Path, *overrides: str) -> RunFolder:
    sources = [write_corpus(folder / f"{name}.jsonl", seed=seed) for name, seed in (("a", 1), ("b", 2))]
    config = tiny(
        folder,
        "data.path=null",
        f'++data.sources.first.path="{sources[0]}"',
        f'++data.sources.second.path="{sources[1]}"',
        "data.held_out=0.2",
        "parallelism.micro_batch=2",
        "evaluation.every=2",
        "evaluation.sequences=7",
        "checkpoint.every=2",
        *overrides,
    )
    return train_here(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return two_sources(tmp_path_factory.mktemp("run"))


def reported(folder: RunFolder) -> dict[int, dict[str, float]]:
    return {event["step"]: event["losses"] for event in read_events(folder) if event["event"] == "evaluation"}


def test_it_measures_what_training_reported(run: RunFolder) -> None:
    told = reported(run)
    assert sorted(told) == [2, 4]
    assert sorted(told[4]) == ["first", "second"]
    for step in (2, 4):
        assert evaluate_run(run.path, step, sequences=7) == pytest.approx(told[step], rel=1e-6)
    assert evaluate_run(run.path, sequences=7) == pytest.approx(told[4], rel=1e-6)
    assert told[2] != pytest.approx(told[4], rel=1e-6)


def test_bf16_is_measured_as_it_was_trained(tmp_path: Path) -> None:
    folder = two_sources(tmp_path, "model.precision=bf16")
    assert evaluate_run(folder.path, sequences=7) == pytest.approx(reported(folder)[4], rel=1e-6)


def test_more_sequences_measure_more_text(run: RunFolder) -> None:
    assert evaluate_run(run.path, sequences=2) != pytest.approx(evaluate_run(run.path, sequences=7), rel=1e-6)


def test_an_untrained_model_is_about_as_good_as_chance(run: RunFolder) -> None:
    for loss in evaluate_run(run.path).values():
        assert loss == pytest.approx(torch.tensor(320.0).log().item(), rel=0.1)


def test_data_that_has_changed_is_refused_by_name(run: RunFolder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    config = (copy / "run.yaml").read_text()
    corpus = write_corpus(tmp_path / "b.jsonl", seed=3)
    old = str(run.path.parent.parent / "b.jsonl")
    assert old in config
    (copy / "run.yaml").write_text(config.replace(old, str(corpus)))
    with pytest.raises(UmbelError, match=r"source second: b\.jsonl: has changed since the run began"):
        evaluate_run(copy)


def test_a_run_that_held_nothing_out_is_refused(tmp_path: Path) -> None:
    folder = train_here(tiny(tmp_path, "data.held_out=0", "evaluation.every=2"))
    assert reported(folder) == {}
    with pytest.raises(UmbelError, match=r"data\.held_out: holds nothing to evaluate on"):
        evaluate_run(folder.path)
    with pytest.raises(UmbelError, match="--sequences"):
        evaluate_run(folder.path, sequences=0)
