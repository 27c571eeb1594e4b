"""`umbel plan` and `umbel launch`: the script that is shown is the script that is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from base.errors import UmbelError
from launch.cli import app
from record.events import read_events
from record.folder import RunFolder
from support.slurm import SlurmCluster

TINY = (
    "cluster=slurm", "cluster.nodes=2", "cluster.slurm.time=00:05:00", "cluster.setup=['exec sleep 300']",
    "parallelism=zero1", "schedule.global_batch=8", "run.name=a", "cluster.memory_gb=4",
)  # fmt: skip


def umbel(*words: str) -> Result:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Slurm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    return tmp_path


def test_a_plan_needs_no_slurm(nowhere: Path) -> None:
    result = umbel("plan", *TINY, "cluster.devices_per_node=2")
    assert "no Slurm here to ask: what is not set, the site decides" in result.stderr
    script = result.stdout[result.stdout.index("#!/bin/bash") :]
    assert "#SBATCH --gres=gpu:2\n" in script and "cpus-per-task" not in script
    assert script.rstrip().endswith(f"-m train.worker {nowhere / 'runs' / 'a' / 'run.yaml'}")
    plan = json.loads(umbel("plan", *TINY, "cluster.devices_per_node=2", "--json").stdout)
    assert plan["script"].rstrip() == script.rstrip()
    assert (plan["world_size"], plan["partition"]) == (4, None)
    assert plan["node_hours"] == pytest.approx(2 * 5 / 60)
    assert list(nowhere.iterdir()) == []


def test_a_plan_without_slurm_must_be_told_the_devices(nowhere: Path) -> None:
    with pytest.raises(
        UmbelError, match=r"cluster\.devices_per_node: is not set, and there is no Slurm here"
    ):
        umbel("plan", *TINY)


def test_what_no_profile_says_of_memory_is_not_known(nowhere: Path) -> None:
    words = ("plan", *TINY[:-1], "cluster.devices_per_node=2")
    plan = json.loads(umbel(*words, "--json").stdout)
    assert (plan["memory_available"], plan["fits"], plan["problem"]) == (None, None, None)
    assert "zero1 on cuda" in umbel(*words).stdout
    assert "whether it fits is not known: cluster.memory_gb is not set" in umbel(*words).stdout


def test_a_launch_without_slurm_says_what_is_missing(nowhere: Path) -> None:
    with pytest.raises(UmbelError, match="no Slurm here: there is no sbatch in PATH; go to a login node"):
        umbel("launch", "--yes", *TINY, "cluster.devices_per_node=2")
    assert list(nowhere.iterdir()) == []


def test_runs_of_this_machine_and_of_slurm_are_not_swept_together(nowhere: Path) -> None:
    with pytest.raises(UmbelError, match="cannot be both of this machine and of Slurm"):
        umbel("launch", "--multirun", "cluster=local,slurm", "cluster.devices_per_node=1")
    with pytest.raises(UmbelError, match="2 runs at once would share this machine's devices"):
        umbel("launch", "--multirun", "--detach", "run.seed=1,2")


@pytest.mark.slow
def test_what_is_planned_is_sent(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = json.loads(umbel("plan", *TINY, "--json").stdout)
    assert (plan["world_size"], plan["partition"]) == (8, "main")
    result = umbel("launch", "--yes", *TINY)
    assert result.exit_code == 0, result.stderr
    folder = RunFolder(Path("runs/a"))
    (event,) = [event for event in read_events(folder) if event["event"] == "submitted"]
    assert (folder.path / event["script"]).read_text() == plan["script"]
    sent = cluster.command("scontrol", "write", "batch_script", event["job"], "-")
    assert sent.strip() == plan["script"].strip()


@pytest.mark.slow
def test_a_run_goes_on_in_another_job(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    umbel("launch", "--yes", *TINY)
    with pytest.raises(UmbelError, match="of this run is"):
        umbel("resume", "a", "--yes")
    cluster.clean()
    with pytest.raises(UmbelError, match="1 of its keys differ"):
        umbel("resume", "a", "--yes", "optimizer.lr=1")
    umbel("resume", "a", "--yes", "cluster.nodes=4", "cluster.devices_per_node=1")
    jobs = [event["job"] for event in read_events(RunFolder(Path("runs/a"))) if event["event"] == "submitted"]
    assert len(jobs) == 2
    assert cluster.job(jobs[1])["NumNodes"].split("-")[0] == "4"
