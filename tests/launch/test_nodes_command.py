"""umbel preflight on this machine, and what it would ask Slurm for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from base.errors import UmbelError
from launch.cli import app
from launch.nodes.allocation import allocation

SCRIPT = """#!/bin/bash

# Parameters
#SBATCH --gres=gpu:8
#SBATCH --job-name=run
#SBATCH --no-kill
#SBATCH --nodes=2
#SBATCH --output='/runs with spaces/logs/slurm-%j.log'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=20:00:00

# setup
module load cuda || exit
export A='b c'

# command
exec something
"""


def test_this_machine_passes_and_leaves_only_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, ["preflight", "cluster.device=cpu", "--out", "lists"])
    assert ran.exit_code == 0, ran.output
    assert "1 of 1 node passes" in ran.stdout
    (figures,) = (tmp_path / "runs" / ".nodes").iterdir()
    assert json.loads(figures.read_text())["rates"][0] > 0
    assert (tmp_path / "lists" / "passing_nodes.txt").read_text() == f"{figures.stem}\n"
    assert (tmp_path / "lists" / "failing_nodes.txt").read_text() == ""


def test_more_nodes_than_there_are_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, ["preflight", "--nodes", "2"])
    assert isinstance(ran.exception, UmbelError)
    assert str(ran.exception) == "--nodes: 2 nodes are asked for, but 1 are here"


def test_an_allocation_asks_for_what_the_run_would() -> None:
    assert allocation(SCRIPT, ["umbel", "preflight", "a b"]) == [
        "salloc", "--gres=gpu:8", "--no-kill", "--nodes=2", "--partition=gpu", "--job-name=preflight",
        "--time=10", "bash", "-c",
        "module load cuda || exit\nexport A='b c'\n\nexec umbel preflight 'a b'",
    ]  # fmt: skip
