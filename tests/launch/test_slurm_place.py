"""The life of a job, on a real Slurm: every way in which it can end, with a stand-in for the workers."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from record.control import request_stop
from record.events import latest, read_events
from record.folder import RunFolder
from record.metrics import read_metrics
from record.state import run_state
from support.runs import freeze, tiny
from support.slurm import SlurmCluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("stand_in_worker.py")


@dataclass
class Life:
    """A run that was submitted, and what it has written down."""

    cluster: SlurmCluster
    run: RunFolder
    job: str = ""

    def all(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run) if event["event"] == name]

    def newest(self, name: str) -> dict[str, Any]:
        event = latest(read_events(self.run), name)
        assert event is not None, f"no {name} in {read_events(self.run)}"
        return event

    def wait(self, what: Callable[[], Any], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"{read_events(self.run)}\n{self.said()}"
            time.sleep(0.1)

    def wait_for(self, name: str, count: int = 1, seconds: float = 60) -> None:
        self.wait(lambda: len(self.all(name)) >= count, seconds)

    def wait_for_steps(self) -> None:
        """Until the newest start has made some."""
        before = len(read_metrics(self.run))
        self.wait(lambda: len(read_metrics(self.run)) > before + 3)

    @property
    def first_nodes(self) -> list[str]:
        """Those of the first start: which ones, Slurm decides."""
        nodes: list[str] = self.all("job")[0]["nodes"]
        return nodes

    def said(self) -> str:
        return "\n".join(f"{file.name}: {file.read_text()}" for file in self.run.logs.rglob("*.log"))

    def tasks(self, rank: int) -> list[psutil.Process]:
        """The processes of a rank."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if str(self.run.run_yaml) in (process.info["cmdline"] or []) and "srun" not in process.name():
                variables = process.environ()
                if variables.get("SLURM_PROCID") == str(rank) and "SLURM_STEP_ID" in variables:
                    found.append(process)
        return [process for process in found if str(STAND_IN) in process.info["cmdline"][1]]

    def supervisor(self) -> psutil.Process:
        place = str(self.run.path)
        (found,) = [
            process
            for process in psutil.process_iter(["cmdline"])
            if {"launch.supervise", place} <= set(process.info["cmdline"] or [])
        ]
        return found


Begin = Callable[..., Life]


@pytest.fixture
def begin(cluster: SlurmCluster, tmp_path: Path) -> Begin:
    """Submit a run of two nodes: ``begin("sbatch options…", config overrides…, VARIABLE="value")``."""

    def submit(options: str = "", *overrides: str, **variables: str) -> Life:
        config = tiny(
            tmp_path, "schedule.steps=20000", "cluster.name=t", "cluster.launcher=slurm", "cluster.nodes=2",
            "cluster.device=cpu", "cluster.devices_per_node=1", "cluster.slurm.grace_seconds=10",
            "parallelism=ddp", "parallelism.processes=2", "supervision.preflight=false", *overrides,
        )  # fmt: skip
        life = Life(cluster, freeze(config))
        exports = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", **variables}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
        worker = f"{sys.executable} {STAND_IN} {life.run.run_yaml}"
        lines += [
            f"exec {sys.executable} -u -P -m launch.supervise {life.run.path} -- "
            f"srun --kill-on-bad-exit=1 --wait=60 {worker}"
        ]
        usual = ["--ntasks-per-node=1", "--cpus-per-task=1", "--mem=500M", "--requeue", "--time=5"]
        nodes = [] if "-N" in options else ["-N2"]
        log = [f"--output={life.run.logs}/slurm-%j.log", "--open-mode=append", "--signal=USR2@10"]
        script = life.run.job / "submit.sh"  # a run's jobs are known by where their script lies
        script.write_text("\n".join(["#!/bin/bash", *lines, ""]))
        words = [*usual, *nodes, *log, f"--job-name={life.run.name}", *options.split()]
        life.job = cluster.command("sbatch", "--parsable", *words, str(script))
        return life

    return submit


def test_to_the_end(begin: Begin) -> None:
    life = begin("", "schedule.steps=5")
    assert life.cluster.wait(life.job) == "COMPLETED"
    assert run_state(life.run, read_events(life.run)) == "finished"
    job = life.newest("job")
    assert (job["id"], len(job["nodes"])) == (life.job, 2)
    assert 0 < job["deadline"] - time.time() <= 300


def test_a_request_to_stop_ends_the_job(begin: Begin) -> None:
    life = begin()
    life.wait_for_steps()
    request_stop(life.run)
    assert life.cluster.wait(life.job) == "COMPLETED"
    assert life.newest("stopped")["reason"] == "umbel stop"
    assert not life.all("requeue")


def test_scancel_saves_and_is_named(begin: Begin) -> None:
    life = begin()
    life.wait_for_steps()
    life.cluster.command("scancel", life.job)
    life.wait_for("stopped", 2)
    assert life.cluster.wait(life.job) == "CANCELLED"
    assert (life.newest("stopped")["reason"], life.newest("stopped")["saved"]) == ("scancel", True)
    assert life.newest("stopped")["step"] == life.newest("checkpoint")["step"] > 0
    assert not life.all("requeue")


def test_scancel_of_workers_that_do_not_hear_is_told_too(begin: Begin) -> None:
    life = begin(STAND_IN="deaf")
    life.wait_for_steps()
    life.cluster.command("scancel", life.job)
    assert life.cluster.wait(life.job) == "CANCELLED"
    assert not life.all("failed")


def test_a_killed_rank_is_named_and_started_again_in_the_same_job(begin: Begin) -> None:
    life = begin(STAND_IN="kill-1-once")
    life.wait_for("start", 2)
    failed, blamed = life.newest("failed"), life.newest("blamed")
    assert (failed["rank"], failed["node"], failed["kind"]) == (1, life.first_nodes[1], "killed")
    assert blamed["node"] == life.first_nodes[1]
    assert life.newest("restart")["why"] == "killed"
    assert {event["id"] for event in life.all("job")} == {life.job}


def test_a_rank_that_raises_is_started_again_and_no_node_is_blamed(begin: Begin) -> None:
    life = begin(STAND_IN="crash-once")
    life.wait_for("start", 2)
    failed = life.newest("failed")
    assert (failed["rank"], failed["node"], failed["kind"]) == (0, life.first_nodes[0], "raised")
    assert "RuntimeError: a fault nobody foresaw" in failed["words"]
    assert life.newest("restart")["why"] == "raised"
    assert not life.all("blamed")


def test_a_fault_that_comes_again_is_given_up_with_the_ranks_own_words(begin: Begin) -> None:
    life = begin("", "supervision.restarts=2", STAND_IN="early")
    assert life.cluster.wait(life.job) == "FAILED"
    gave_up = life.newest("gave up")
    last = f"at last rank 0 on {life.first_nodes[0]}: "
    assert gave_up["why"].startswith(f"2 starts in a row brought no checkpoint; {last}")
    assert "RuntimeError: a fault before the first step" in gave_up["words"]
    assert "Traceback" in gave_up["words"]
    assert run_state(life.run, read_events(life.run)) == "failed"


def test_bad_input_ends_at_once(begin: Begin) -> None:
    life = begin(STAND_IN="fail")
    assert life.cluster.wait(life.job) == "FAILED"
    assert life.cluster.job(life.job)["ExitCode"] == "2:0"
    assert len(life.all("job")) == 1


def test_a_preempted_run_saves_comes_back_and_goes_on(begin: Begin) -> None:
    life = begin("--partition=low")
    life.wait_for_steps()
    life.cluster.submit("sleep 1", "--partition=high", "-N4", "--exclusive")
    life.wait_for("requeue")
    assert life.newest("requeue")["why"] == "preempted"
    assert run_state(life.run, read_events(life.run)) in ("requeued", "starting")
    life.cluster.release(life.job)
    life.wait_for("start", 2)
    saved = life.all("checkpoint")[0]["step"]
    assert life.newest("start")["step"] == saved > 0


def test_the_time_limit_saves_and_requeues(begin: Begin) -> None:
    life = begin("--time=1")
    life.wait_for("requeue", seconds=90)
    assert life.newest("requeue")["why"] == "time limit"
    assert life.newest("checkpoint")["step"] > 0
    life.cluster.wait(life.job, "PENDING", seconds=30)


def test_a_spare_takes_the_place_of_a_lost_node(begin: Begin) -> None:
    life = begin("-N3 --no-kill", "cluster.spare_nodes=1")
    life.wait_for_steps()
    stays, lost = life.first_nodes
    life.cluster.lose(lost)
    life.wait_for("start", 2)
    taken = life.newest("job")["nodes"]
    assert (taken[0], lost in taken, len(taken)) == (stays, False, 2)
    assert (life.newest("failed")["error"], life.newest("blamed")["node"]) == (f"node {lost} was lost", lost)
    assert {event["id"] for event in life.all("job")} == {life.job}


def test_without_a_spare_a_lost_node_brings_the_job_back_elsewhere(begin: Begin) -> None:
    life = begin()
    life.wait_for_steps()
    lost = life.first_nodes[1]
    life.cluster.lose(lost)
    life.wait_for("requeue")
    assert (life.newest("requeue")["why"], life.newest("blamed")["node"]) == ("node", lost)
    tried = len(life.all("job"))  # here again, perhaps, before Slurm knew of the loss
    life.cluster.release(life.job)
    life.wait_for("job", tried + 1)
    assert lost not in life.newest("job")["nodes"]


def test_a_node_that_is_blamed_twice_is_excluded(begin: Begin) -> None:
    life = begin()
    for count in (1, 2):
        life.wait_for("start", count)
        life.wait_for_steps()
        life.wait(lambda: life.tasks(1))
        for task in life.tasks(1):
            task.kill()
        life.wait_for("blamed", count)
    life.wait_for("requeue")
    blamed = life.first_nodes[1]
    assert life.newest("requeue")["exclude"] == [blamed]
    life.cluster.release(life.job)
    assert life.cluster.job(life.job)["ExcNodeList"] == blamed
    life.wait_for("start", 3)
    assert blamed not in life.newest("job")["nodes"]


def test_kill_9_of_the_supervisor_saves(begin: Begin) -> None:
    life = begin()
    life.wait_for_steps()
    os.kill(life.supervisor().pid, signal.SIGKILL)
    life.wait_for("stopped")
    assert life.cluster.wait(life.job) == "FAILED"
    assert run_state(life.run, read_events(life.run)) == "stopped"


def test_the_next_of_a_chain_goes_on_and_none_is_left_when_the_run_ends(begin: Begin) -> None:
    chain = ("cluster.slurm.chain=array", "cluster.slurm.jobs=3")
    life = begin("--time=1 --array=1-3%1", *chain)
    life.wait_for("requeue", seconds=90)
    life.wait_for("start", 2, seconds=90)
    life.wait_for_steps()
    request_stop(life.run)
    life.wait_for("stopped", 2)
    life.wait(lambda: not life.cluster.command("squeue", "-h", "-j", life.job, check=False))
    life.wait(lambda: [row["State"] for row in life.cluster.accounted(life.job)].count("COMPLETED") == 2)
    assert len(life.all("job")) == 2
