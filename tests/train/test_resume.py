"""A run stopped anywhere goes on, on any topology, as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from base.files import read_json
from configs.schema import RunConfig
from record.events import read_events
from record.folder import RunFolder
from support.runs import finish, tiny

STEPS, HALF = 20, 10
SAME = ("loss", "lr", "grad_norm", "sequences", "tokens")


def run(folder: Path, name: str, parallelism: str, *more: str) -> RunConfig:
    return tiny(
        folder,
        f"run.name={name}",
        f"parallelism={parallelism}",
        "parallelism.processes=null",
        "parallelism.micro_batch=1",
        f"schedule.steps={STEPS}",
        "checkpoint.every=10",
        "optimizer.lr=5e-3",
        *more,
    )


def until_half(config: RunConfig, processes: int) -> None:
    finish(config, processes, env={"UMBEL_STOP_AFTER": str(HALF)})
    assert read_events(RunFolder.of(config))[-1]["event"] == "stopped"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    return finish(run(tmp_path_factory.mktemp("whole"), "whole", "zero2"), 2)


@pytest.mark.slow
def test_same_topology_is_bit_identical(tmp_path: Path, uninterrupted: dict[int, dict]) -> None:
    config = run(tmp_path, "same", "zero2")
    until_half(config, 2)
    resumed = finish(config, 2)
    assert len(resumed) == STEPS
    for step, line in resumed.items():
        assert {key: line[key] for key in SAME} == {key: uninterrupted[step][key] for key in SAME}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallelism", "processes"), [("zero3", 1), ("single", 1), ("zero1", 2), ("ddp", 2)]
)
def test_another_topology_goes_on_alike(
    tmp_path: Path, uninterrupted: dict[int, dict], parallelism: str, processes: int
) -> None:
    until_half(run(tmp_path, "moved", "zero2"), 2)
    moved = finish(run(tmp_path, "moved", parallelism), processes)
    assert len(moved) == STEPS
    for step, line in moved.items():
        assert line["loss"] == pytest.approx(uninterrupted[step]["loss"], rel=1e-4), f"step {step}"
        assert (line["lr"], line["tokens"]) == (uninterrupted[step]["lr"], uninterrupted[step]["tokens"])
    manifest = read_json(
        RunFolder.of(run(tmp_path, "moved", parallelism)).checkpoints / "step-00000020/manifest.json"
    )
    assert manifest["topology"]["world_size"] == processes
    assert all(group["step"] == STEPS for group in manifest["groups"])
    assert manifest["parent"], "a checkpoint names the one it came from"
