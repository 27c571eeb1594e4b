"""The batch script: recorded byte for byte, and taken by a real shell with every word whole."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from configs.compose import compose
from launch.paths import absolute_paths
from launch.slurm.request import Request, request
from launch.slurm.script import script
from launch.slurm.site import Share

RECORDED = Path(__file__).parents[1] / "recorded"
CONTAINER = (
    "cluster.container={image: /img/umbel.sif, mounts: ['/data:/data:ro'], options: [--writable-tmpfs]}"
)
PYXIS = "cluster.container={runtime: pyxis, image: umbel.sqsh, options: [--no-container-mount-home]}"
CONFIGS = {
    "plain": ["cluster=slurm", "cluster.nodes=2", "cluster.slurm.time=02:00:00"],
    "large_site": [
        "cluster=example_large_site", "cluster.scratch=/scr", "cluster.cache=/shared", "run.dir=runs",
        "cluster.slurm.exclude=['node17','node[20-23]']", "cluster.slurm.reservation=week",
    ],
    "torchrun_in_apptainer": [
        "cluster=slurm", "cluster.nodes=2", "cluster.slurm.tasks=per_node", CONTAINER,
        "cluster.slurm.chain=array", "cluster.slurm.jobs=3", "run.dir='/runs with spaces, 100%'",
    ],
    "pyxis_without_devices": [
        "cluster=slurm", "cluster.device=cpu", "parallelism.processes=8", PYXIS,
        "cluster.slurm.options={mail-type: FAIL, exclusive: true, contiguous: false, nice: 100}",
        "cluster.environment={A: \"it's $HOME\"}", "cluster.setup=['echo \"$SLURM_JOB_ID\"']",
    ],
}  # fmt: skip


def asked(name: str) -> Request:
    """Of one of the recorded configs, on nodes with 8 devices, 96 cores and 1 TiB."""
    config = absolute_paths(compose([*_in_runs(CONFIGS[name]), "run.name=recorded"]))
    share = Share(cpus=12, memory=128 * 1024)
    made = request(config, processes_per_node=8, share=share, grace=300, code=Path("/code"))
    return replace(made, python="/venv/bin/python")


def _in_runs(overrides: list[str]) -> list[str]:
    return overrides if any("run.dir" in each for each in overrides) else [*overrides, "run.dir=/runs"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_script_is_the_recorded_one(name: str) -> None:
    text, file = script(asked(name)), RECORDED / f"{name}.sh"
    if "RECORD" in os.environ:
        file.write_text(text)
    assert text == file.read_text(), "look at the difference; RECORD=1 records it anew"


def test_every_recorded_script_is_of_a_config() -> None:
    assert {file.stem for file in RECORDED.glob("*.sh")} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_options_that_every_script_has(name: str) -> None:
    lines = script(asked(name)).splitlines()
    for option in ("--requeue", "--open-mode=append", "--signal=USR2@300", "--job-name=recorded"):
        assert f"#SBATCH {option}" in lines
    assert "wckey" not in "\n".join(lines)


def test_spares_are_asked_for_besides_and_may_be_lost() -> None:
    text = script(asked("large_site"))
    assert "#SBATCH --nodes=5" in text and "#SBATCH --no-kill" in text
    assert "--no-kill" not in script(asked("plain"))


def test_what_no_key_says_is_left_to_the_site() -> None:
    made = replace(asked("plain"), share=None)
    text = script(made)
    for word in ("cpus-per-task", "--mem", "SRUN_CPUS_PER_TASK", "partition", "account", "qos"):
        assert word not in text
    assert "export OMP_NUM_THREADS=1" in text


def test_cores_and_memory_that_are_given_win_over_the_share() -> None:
    config = compose(
        ["cluster=slurm", "cluster.slurm.cpus_per_device=5", "cluster.slurm.memory_per_device_gb=7.5"]
    )
    made = request(config, processes_per_node=2, share=Share(cpus=1, memory=1), grace=60, code=Path("/c"))
    text = script(made)
    assert "--cpus-per-task=5" in text and "--mem=15360M" in text and "SRUN_CPUS_PER_TASK=5" in text


def test_a_shell_gets_every_word_whole(tmp_path: Path) -> None:
    """The script runs, with an interpreter that tells its arguments and its environment."""
    place = tmp_path / "it's here, $HOME"
    place.mkdir()
    teller = place / "python"
    teller.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    teller.chmod(0o755)
    for name in CONFIGS:
        made = replace(asked(name), python=str(teller), folder=place, code=place / "code")
        cluster = replace(made.cluster, modules=[], setup=[])
        text = script(replace(made, cluster=cluster))
        done = subprocess.run(["bash"], input=text, capture_output=True, text=True, env={"PYTHONPATH": "/x"})
        assert done.returncode == 0, done.stderr
        told, variables = json.loads(done.stdout)
        supervisor = ["-u", "-P", "-m", "launch.supervise", str(place), "--", "srun"]
        assert told[: len(supervisor)] == supervisor
        # One torchrun a node reads its own line once more, as a shell.
        last = shlex.split(told[-1]) if name == "torchrun_in_apptainer" else told
        assert last[-1] == str(place / "run.yaml")
        assert variables["PYTHONPATH"] == f"{place / 'code'}:/x"
        assert variables.get("A") == ("it's $HOME" if name == "pyxis_without_devices" else None)


def test_torchrun_meets_where_the_supervisor_says(tmp_path: Path) -> None:
    """The inner shell of one torchrun a node: its endpoint is read there, not in the batch script."""
    made = replace(asked("torchrun_in_apptainer"), folder=tmp_path / "a b", python="echo")
    made = replace(made, cluster=replace(made.cluster, container=None))
    line = script(made).split("--wait=60 \\\n  ")[1].strip()
    place = {
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "29500",
        "SLURM_JOB_ID": "7",
        "PATH": os.environ["PATH"],
    }
    told = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=place, check=True).stdout
    assert "--rdzv-endpoint=10.0.0.7:29500" in told and "--rdzv-id=7" in told
    assert "--nproc-per-node=8 --rdzv-backend=c10d" in told and "SIGUSR2" in told
    assert told.strip().endswith(f"-m train.worker {tmp_path}/a b/run.yaml")


def test_modules_that_cannot_be_loaded_end_the_job(tmp_path: Path) -> None:
    text = script(asked("large_site"))
    done = subprocess.run(
        ["bash"], input=f"module() {{ return 3; }}\n{text}", capture_output=True, text=True, env={}
    )
    assert done.returncode == 3
