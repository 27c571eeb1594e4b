"""A run that tokenizes while it trains, through the real workers: stopped, moved, and without a file."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from base.files import read_json
from checkpoint.reader import StateReader
from configs.schema import RunConfig
from record.events import read_events
from record.folder import RunFolder
from support.runs import finish, tiny, work, write_corpus
from train.left_out import files_left_out

STEPS, HALF = 12, 6
SAME = ("loss", "lr", "grad_norm", "sequences", "tokens")


def run(folder: Path, name: str, *more: str) -> RunConfig:
    """A streamed run over two files; each rank reads through a process of its own."""
    if not (folder / "texts").exists():
        for number in range(2):
            write_corpus(folder / "texts" / f"{number}.jsonl", seed=number)
    return tiny(
        folder,
        f"run.name={name}",
        f'data.path="{folder / "texts"}"',
        f'data.cache_dir="{folder / "cache"}"',
        "data.mode=streaming",
        "data.shuffle_window=100",
        "parallelism=ddp",
        "parallelism.processes=null",
        "parallelism.micro_batch=1",
        f"schedule.steps={STEPS}",
        "optimizer.lr=5e-3",
        *more,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    return finish(run(tmp_path_factory.mktemp("whole"), "whole"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 1])
def test_a_stopped_run_goes_on_with_the_next_token(
    tmp_path: Path, uninterrupted: dict[int, dict[str, Any]], processes: int
) -> None:
    config = run(tmp_path, "moved")
    finish(config, 2, env={"UMBEL_STOP_AFTER": str(HALF)})
    moved = finish(run(tmp_path, "moved", "data.workers=0"), processes)
    assert len(moved) == STEPS
    for step, line in moved.items():
        for key in SAME:
            assert line[key] == pytest.approx(uninterrupted[step][key], rel=1e-4), f"step {step}: {key}"
    assert [line["loss"] for line in moved.values()][:HALF] == [
        uninterrupted[step]["loss"] for step in range(1, HALF + 1)
    ]


@pytest.mark.slow
def test_what_is_saved_tells_where_the_lanes_stand(tmp_path: Path) -> None:
    config = run(tmp_path, "saved", "schedule.steps=2")
    lines = finish(config, 2)
    folder = RunFolder.of(config)
    with StateReader(folder.checkpoints / "step-00000002") as reader:
        assert reader.shape("data.cursors") == (config.schedule.global_batch, 1, 2)
        assert reader.manifest["extra"]["order"] == {
            "seed": config.run.seed,
            "lanes": config.schedule.global_batch,
            "number": 8,
            "rows": {"data": 8},
        }
    assert lines[2]["sources"]["data"]["tokens"] == 8 * 32


@pytest.mark.slow
def test_an_order_that_would_have_been_another_is_refused(tmp_path: Path) -> None:
    finish(run(tmp_path, "cured", "schedule.steps=3"), 1)
    (ended,) = work(run(tmp_path, "cured", "data.skip=[[4,8]]"))
    assert ended.returncode == 2
    told = read_events(RunFolder.of(run(tmp_path, "cured")))[-1]["error"]
    assert "step-00000003: with this data.skip, these data.phases and weights" in told
    assert "number 12 of the global order" in told
    assert len(finish(run(tmp_path, "cured", "data.skip=[[12,20]]"))) == STEPS


@pytest.mark.slow
def test_a_file_that_cannot_be_read_stops_the_run_or_is_left_out(tmp_path: Path) -> None:
    finish(run(tmp_path, "hurt"), 1, env={"UMBEL_STOP_AFTER": "1"})
    for cached in (tmp_path / "cache" / "documents").rglob("*.arrow"):
        cached.unlink()
    (tmp_path / "texts" / "1.jsonl").unlink()
    folder = RunFolder.of(run(tmp_path, "hurt"))

    (ended,) = work(run(tmp_path, "hurt"))
    assert ended.returncode == 2
    assert "1.jsonl" in read_events(folder)[-1]["error"]
    assert not (folder.path / "files_left_out.json").exists()

    (ended,) = work(run(tmp_path, "hurt", "data.on_bad_file=skip"))
    assert ended.returncode == 1
    assert "source data: 1.jsonl: cannot be read" in read_events(folder)[-1]["error"]
    assert read_json(folder.path / "files_left_out.json") == {"data": ["1.jsonl"]}

    finish(run(tmp_path, "hurt", "data.on_bad_file=skip"), 1, env={"UMBEL_STOP_AFTER": "4"})
    # Whoever takes the run over from a checkpoint leaves the same files out.
    (folder.path / "files_left_out.json").unlink()
    assert files_left_out(folder) == {"data": ["1.jsonl"]}
    lines = finish(run(tmp_path, "hurt"))
    assert list(lines) == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prepared", "streaming"])
def test_steps_hardly_wait_for_data(tmp_path: Path, mode: str) -> None:
    """Medians, for a machine that does other things too may wait once for anything."""
    lines = finish(
        run(tmp_path, mode, f"data.mode={mode}", "schedule.steps=60", "schedule.global_batch=16"), 1
    )
    later = [lines[step] for step in range(11, 61)]
    waited = statistics.median(line["data_wait"] for line in later)
    assert waited < 0.01 * statistics.median(line["step_seconds"] for line in later)
