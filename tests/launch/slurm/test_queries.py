"""What Slurm knows, asked of a real one; and how its words are read and passed on."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from base.errors import UmbelError
from launch.slurm import queries
from launch.slurm.ask import SECONDS, ask, require_slurm
from launch.slurm.jobs import jobs, queue_position
from launch.slurm.queries import gres_counts
from support.slurm import SlurmCluster

QUIET = "--output=/dev/null"


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("gpu:4", {"gpu": 4}),
        ("gpu:a100:8(S:0-1),nvme:1", {"gpu:a100": 8, "nvme": 1}),
        ("gpu:a100:2(IDX:0-1),gpu:h100:0(IDX:N/A)", {"gpu:a100": 2, "gpu:h100": 0}),
        ("(null)", {}),
        ("", {}),
    ],
)
def test_generic_resources_are_counted(text: str, counts: dict[str, int]) -> None:
    assert gres_counts(text) == counts


def test_values_of_scontrol_may_hold_blanks() -> None:
    (node,) = [
        queries._node(facts)
        for facts in queries._records(
            "NodeName=a1 CPUAlloc=0 CPUEfctv=62 CPUTot=64 ActiveFeatures=a100,ib Gres=gpu:a100:8(S:0-1) "
            "GresUsed=gpu:a100:3(IDX:0-2) NodeAddr=10.0.0.1 OS=Linux 5.10 #1 SMP Debian RealMemory=512000 "
            "MemSpecLimit=2000 State=MIXED+DRAIN Partitions=gpu,all Reason=GPU 3 fell off [op@2026]"
        )
    ]
    assert (node.cpus, node.memory, node.partitions) == (62, 510000, ("gpu", "all"))
    assert (node.devices("gpu"), node.devices("gpu:a100"), node.devices("gpu:h100")) == (8, 8, 0)
    assert (node.devices_used("gpu"), node.features, node.works) == (3, ("a100", "ib"), False)
    assert node.reason == "GPU 3 fell off [op@2026]"


def test_no_slurm_here_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UmbelError, match="no Slurm here: there is no sbatch in PATH; go to a login node"):
        require_slurm()
    with pytest.raises(UmbelError, match="no Slurm here: there is no squeue in PATH"):
        jobs("1")


def program(place: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")


def test_a_command_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "sinfo", "exec sleep 60", monkeypatch)
    began = time.monotonic()
    with pytest.raises(UmbelError, match="sinfo: did not answer in 1 s"):
        ask("sinfo", seconds=1)
    assert time.monotonic() - began < 10 < SECONDS


def test_variables_that_steer_slurm_do_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "squeue", "env", monkeypatch)
    for name in ("SQUEUE_FORMAT", "SLURM_JOB_ID", "SBATCH_PARTITION", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "strange")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    told = ask("squeue")
    assert "strange" not in told
    assert "SLURM_CONF=/etc/slurm.conf" in told and "SLURM_TIME_FORMAT=%s" in told


# On a real Slurm ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_partitions_and_nodes(cluster: SlurmCluster) -> None:
    found = {partition.name: partition for partition in queries.partitions()}
    assert [name for name, partition in found.items() if partition.is_default] == ["main"]
    assert (found["main"].limit, found["short"].limit, found["main"].nodes) == (3600, 120, 4)
    nodes = queries.nodes("main")
    assert [node.name for node in nodes] == list(cluster.nodes) == queries.hostnames("node[1-4]")
    assert all(node.works and node.devices("gpu") == 4 and node.address == "127.0.0.1" for node in nodes)
    assert queries.nodes("none") == []


@pytest.mark.slow
def test_a_job_from_the_queue_to_accounting(cluster: SlurmCluster) -> None:
    running = cluster.submit("sleep 60", QUIET, "--gres=gpu:3", "--time=5", "--nodes=2")
    cluster.wait(running, "RUNNING")
    (job,) = jobs(running)
    assert job.is_active and job.node_count == 2 and queries.hostnames(job.nodes) == ["node1", "node2"]
    assert job.start is not None and abs(job.start - time.time()) < 60
    assert job.end == job.start + 300 and job.submitted is not None
    assert [node.devices_used("gpu") for node in queries.nodes()] == [3, 3, 0, 0]
    held = [cluster.submit("true", QUIET, "--hold") for _ in range(2)]
    (waiting,) = jobs(held[0])
    assert (waiting.state, waiting.reason, waiting.start) == ("PENDING", "JobHeldUser", None)
    assert queue_position(job) is None and queue_position(waiting) in (1, 2)
    cluster.command("scancel", running)
    cluster.wait(running, "CANCELLED")
    (ended,) = jobs(running)
    assert (ended.state, ended.is_active) == ("CANCELLED", False)


@pytest.mark.slow
def test_an_array_is_all_its_jobs(cluster: SlurmCluster) -> None:
    array = cluster.submit("sleep 60", QUIET, "--array=1-3%1")
    cluster.wait(array, "RUNNING")
    assert {job.id for job in jobs(array)} == {f"{array}_1", f"{array}_[2-3%1]"}


@pytest.mark.slow
def test_jobs_that_nobody_knows(cluster: SlurmCluster) -> None:
    assert jobs("999999") == []


@pytest.mark.slow
def test_accounts_and_what_slurm_refuses(cluster: SlurmCluster) -> None:
    assert queries.associations() and all(each.account for each in queries.associations())
    assert "normal" in [qos.name for qos in queries.qualities()]
    with pytest.raises(UmbelError, match=r"scontrol: .*[Ii]nvalid job id"):
        ask("scontrol", "show", "job", "999999")
