"""A plan's numbers, and that they can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from base.errors import UmbelError
from base.files import write_text
from configs.compose import compose
from launch.plan import Plan, make_plan, render

TINY = ("model=llama_tiny", "data.sequence_length=64", "cluster.memory_gb=4", "schedule.global_batch=16")


def plan(folder: Path, *overrides: str, world_size: int = 2) -> Plan:
    config = compose([*TINY, "parallelism=ddp", f'run.dir="{folder}"', *overrides])
    return make_plan(config, world_size)


def shown(made: Plan) -> str:
    console = Console(width=80, record=True, file=StringIO())
    console.print(render(made))
    return console.export_text()


def test_the_numbers_agree(tmp_path: Path) -> None:
    made = plan(tmp_path, "schedule.steps=10", "schedule.warmup_steps=1")
    assert made.micro_batch * made.accumulation * made.world_size == made.global_batch == 16
    assert (made.sequences, made.tokens) == (160, 160 * 64)
    assert made.memory_needed == sum(made.memory.values())
    assert made.checkpoint_bytes == 12 * made.parameters
    assert made.disk_needed == 4 * made.checkpoint_bytes
    assert made.fits
    assert made.seconds is None


def test_a_plan_is_json(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert json.loads(json.dumps(made.as_json()))["parameters"] == made.parameters


def test_the_screen_fits_80_columns_and_says_the_main_things(tmp_path: Path) -> None:
    text = shown(plan(tmp_path))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for said in ("1,836,160 parameters", "fits", "logits and loss", "▏", "not known before"):
        assert said in text


def test_a_model_that_does_not_fit_is_planned_all_the_same(tmp_path: Path) -> None:
    made = plan(tmp_path, "cluster.memory_gb=0.01")
    assert not made.fits
    assert made.problem is not None
    assert "too large for the memory" in made.problem
    assert "too large" in shown(made)
    assert "smaller model" in shown(made)


def test_a_fixed_micro_batch_that_does_not_fit_is_told(tmp_path: Path) -> None:
    made = plan(tmp_path, "parallelism.micro_batch=8", "cluster.memory_gb=0.07")
    assert not made.fits
    assert "parallelism.micro_batch=8 does not fit" in str(made.problem)


def test_a_run_that_has_begun_knows_how_long_is_left(tmp_path: Path) -> None:
    lines = [
        {"step": step, "tokens": step * 1024, "attempt": 1, "world_size": 2, "tokens_per_second": 512.0}
        for step in range(1, 5)
    ]
    write_text(tmp_path / "run" / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    made = plan(tmp_path, "schedule.steps=14", "schedule.warmup_steps=1")
    assert made.tokens_per_second == 512
    assert made.seconds == 10 * 1024 / 512
    assert "20 s left" in shown(made)
    other = plan(tmp_path, "schedule.steps=14", "schedule.warmup_steps=1", world_size=4)
    assert other.seconds is None


def test_disk_counts_what_every_rule_of_retention_keeps(tmp_path: Path) -> None:
    assert plan(tmp_path, "checkpoint.keep_every=1000").checkpoints_kept == 3 + 1
    often = ("schedule.steps=3000", "checkpoint.keep_every=250")
    assert plan(tmp_path, *often).checkpoints_kept == 3 + 6  # every 500th: saves are every 100
    assert plan(tmp_path, *often, "checkpoint.every=auto").checkpoints_kept == 3 + 12
    assert plan(tmp_path, *often, "checkpoint.every_minutes=5").checkpoints_kept == 3 + 12
    assert plan(tmp_path, "checkpoint.keep_best=5").checkpoints_kept == 3
    assert plan(tmp_path, "checkpoint.keep_best=5", "evaluation.every=500").checkpoints_kept == 3 + 2
    made = plan(tmp_path, "checkpoint.keep_best=5", "evaluation.every=10")
    assert made.disk_needed == (3 + 5 + 1) * made.checkpoint_bytes


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "every 100 steps"),
        (["checkpoint.every=auto"], "as often as pays, at least every 60 minutes"),
        (["checkpoint.every=0"], "at its end"),
        (["checkpoint.every=0", "checkpoint.every_minutes=7.5"], "every 7.5 minutes"),
        (["checkpoint.every_minutes=5"], "every 100 steps and every 5 minutes"),
    ],
)
def test_when_it_saves_is_told(tmp_path: Path, overrides: list[str], said: str) -> None:
    made = plan(tmp_path, *overrides)
    assert made.saves == said
    assert made.lost_share is None
    assert said in shown(made)


def test_what_saves_and_failures_cost_is_told_once_it_was_measured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = {"step": 1, "tokens": 1024, "attempt": 1, "world_size": 2, "tokens_per_second": 512.0}
    write_text(run / "metrics.jsonl", json.dumps(line) + "\n")
    assert plan(tmp_path).lost_share is None
    saved = {"event": "checkpoint", "time": "2026-11-23T08:00:00.000+00:00", "step": 100, "bytes": 1}
    costs = ({"seconds": 9.0}, {"seconds": 10.0, "blocked": 2.0}, {"seconds": 10.0, "blocked": 2.0})
    write_text(run / "events.jsonl", "".join(json.dumps({**saved, **cost}) + "\n" for cost in costs))
    made = plan(tmp_path)
    assert made.save_interval == 100 * 2.0
    assert made.lost_share == pytest.approx(2.4 / 200 + 100 / (5000 * 3600), rel=0.01)
    assert "every 100 steps, about 3m20 apart: 1.2% of the time lost" in " ".join(shown(made).split())
    rarely = plan(tmp_path, "checkpoint.every=0")
    assert rarely.lost_share is None
    auto = plan(tmp_path, "checkpoint.every=auto", "cluster.nodes=100", "cluster.mtbf_hours=1000")
    assert auto.save_interval == pytest.approx((2 * 2.4 * 36_000) ** 0.5, rel=0.01)
    assert auto.lost_share is not None and made.lost_share is not None
    assert auto.lost_share == pytest.approx(2 * 2.4 / auto.save_interval, rel=0.02)


def test_host_memory_beside_the_device_is_told(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert made.host_memory_needed == 6 * made.parameters
    assert made.host_memory_per_node == 12 * made.parameters
    assert "host memory beside it: 10.5 MiB, 21.0 MiB a node" in " ".join(shown(made).split())
    spread = plan(tmp_path, "cluster.nodes=2")
    assert spread.host_memory_per_node == spread.host_memory_needed
    assert "a node" not in shown(spread)
    assert plan(tmp_path, "checkpoint.asynchronous=false").host_memory_needed == 0
    on_cpu = plan(tmp_path, "cluster.device=cpu")
    assert on_cpu.memory["snapshot"] == 6 * on_cpu.parameters
    assert "copy to save from" in shown(on_cpu)


def test_the_plan_leaves_no_trace(tmp_path: Path) -> None:
    plan(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match="not divisible"):
        plan(tmp_path, world_size=3)
    with pytest.raises(UmbelError, match="no such key"):
        plan(tmp_path, "model.config.hiden_size=3")


def test_importing_the_plan_does_not_import_torch() -> None:
    program = "import sys, launch.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
