from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.compose import compose
from launch.processes import HOME, command, environment

CPU = compose(["experiment=demo", "cluster.device=cpu"])


def test_one_process_needs_no_launcher(tmp_path: Path) -> None:
    assert command(tmp_path / "run.yaml", 1) == [
        sys.executable,
        "-m",
        "train.worker",
        str(tmp_path / "run.yaml"),
    ]


def test_more_are_started_by_torchrun_on_a_free_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    arguments = command(tmp_path / "run.yaml", 4)
    assert arguments[1:4] == ["-m", "torch.distributed.run", "--standalone"]
    assert arguments[4:6] == ["--nproc-per-node", "4"]
    monkeypatch.setenv("MASTER_PORT", "29511")
    arguments = command(tmp_path / "run.yaml", 4)
    assert "--standalone" not in arguments
    assert arguments[arguments.index("--master-port") + 1] == "29511"


def test_our_packages_win_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    variables = environment(CPU, 1)
    assert variables["PYTHONPATH"].split(os.pathsep) == [str(HOME), str(tmp_path)]
    found = subprocess.run(
        [sys.executable, "-c", "import data; print(data.__file__)"],
        cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.stdout.strip() == str(HOME / "data" / "__init__.py")


def test_threads_are_shared_out_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    assert environment(CPU, 4)["OMP_NUM_THREADS"] == "2"
    assert environment(CPU, 16)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment(CPU, 4)["OMP_NUM_THREADS"] == "5"


def test_a_cpu_run_sees_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert environment(CPU, 1)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment(compose(["experiment=demo"]), 1)["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_place_in_the_callers_world_does_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = (
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK",
        "ROLE_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "SLURM_PROCID",
    )  # fmt: skip
    for name in (*foreign, "SLURM_JOB_ID", "MY_RANK"):
        monkeypatch.setenv(name, "3")
    variables = environment(CPU, 2)
    assert not set(foreign) & set(variables)
    assert {"SLURM_JOB_ID", "MY_RANK", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"} <= set(variables)
