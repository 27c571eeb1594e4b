from __future__ import annotations

import getpass
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.compose import compose, save
from launch.ended import UNTOLD, how_it_ended
from launch.goodput import goodput
from launch.lag import Lag
from launch.overview import one_status, statuses
from launch.progress import PlainProgress, progress, progress_line
from launch.screens.status import status_card, status_line, status_table
from launch.status import RunStatus, status_of
from record.control import request_stop
from record.events import record_event
from record.folder import RunFolder
from record.lock import RunLock
from record.metrics import MetricsWriter
from support.runs import TINY
from support.slurm import SlurmCluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def write_step(folder: RunFolder, step: int, attempt: int, second: int) -> None:
    time = f"2026-11-23T08:00:{second:02d}.000+00:00"
    MetricsWriter(folder, attempt).write(
        [
            {
                "step": step,
                "loss": 3.0,
                "tokens": 64 * step,
                "tokens_per_second": 41_000.0,
                "mfu": 0.43,
                "time": time,
            }
        ]
    )


def test_a_running_run(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0, world_size=2, zero_stage=2)
    write_step(folder, 10, 1, second=0)
    write_step(folder, 20, 1, second=20)
    with RunLock(folder):
        status = status_of(folder, steps=50)
    assert (status.state, status.step, status.world_size) == ("running", 20, 2)
    assert status.eta == pytest.approx(60)
    assert status.phase is None


def test_eta_needs_two_times_of_this_attempt(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0)
    write_step(folder, 10, 1, second=0)
    record_event(folder, "start", attempt=2, step=10)
    write_step(folder, 20, 2, second=50)
    with RunLock(folder):
        assert status_of(folder, steps=50).eta is None


def test_a_phase_shows_until_the_next_step(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=4)
    record_event(folder, "phase", name="first step")
    with RunLock(folder):
        assert (status_of(folder, 9).phase, status_of(folder, 9).step) == ("first step", 4)
        MetricsWriter(folder, 1).write([{"step": 5, "loss": 3.0}])
        assert status_of(folder, 9).phase is None


def test_a_failure_keeps_its_words(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0, world_size=1, zero_stage=0)
    record_event(folder, "failed", rank=0, error="loss is NaN at step 7", exit_code=1)
    status = status_of(folder, steps=9)
    assert (status.state, status.error) == ("failed", "loss is NaN at step 7")
    assert "loss is NaN at step 7" in drawn(status_card(status))


def test_the_line_says_only_what_is_known() -> None:
    bare = RunStatus(name="a", state="running", step=3, steps=9)
    assert progress_line(bare) == "step 3/9"
    full = RunStatus(
        name="a", state="running", step=120, steps=200, loss=3.2104, tokens_per_second=41_234.0, mfu=0.43,
        eta=130.0, checkpoint_step=100, checkpoint_age=185.0,
    )  # fmt: skip
    assert (
        progress_line(full) == "step 120/200 · loss 3.210 · 41k tok/s · MFU 43 % · ETA 2m10 · ckpt 3 min ago"
    )


def drawn(what: object, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(what)
    return file.getvalue()


def test_the_table_fits_a_terminal() -> None:
    run = RunStatus(
        name="bloom_560m", state="interrupted", step=12_345, steps=50_000, loss=2.345,
        tokens_per_second=41_234.0, eta=250_000.0, checkpoint_step=12_000, checkpoint_age=185.0,
    )  # fmt: skip
    text = drawn(status_table([run]))
    assert len(text.splitlines()) == 2
    assert "12345/50000" in text


def test_elsewhere_than_on_a_terminal_each_change_is_one_line() -> None:
    file = io.StringIO()
    console = Console(file=file, width=40)
    with progress(console) as shown:
        assert isinstance(shown, PlainProgress)
        for step in (0, 0, 1, 1, 2):
            phase = "building model" if step == 0 else None
            shown.show(RunStatus(name="a", state="running", step=step, steps=9, phase=phase, loss=3.0))
        shown.note("[checkpoint] of step 2")
    assert file.getvalue().splitlines() == [
        "building model",
        "step 1/9 · loss 3.000",
        "step 2/9 · loss 3.000",
        "[checkpoint] of step 2",
    ]


def test_the_cause_of_a_failure_is_its_first_word_or_the_launchers_verdict(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0)
    record_event(folder, "failed", rank=0, error="of an earlier attempt")
    record_event(folder, "start", attempt=2, step=0)
    record_event(folder, "failed", rank=1, error="the disk is full")
    record_event(folder, "failed", rank=0, error="connection closed by peer")
    assert status_of(folder, 9).error == "the disk is full"
    record_event(folder, "failed", rank=2, error="was killed by SIGKILL", verdict=True)
    assert status_of(folder, 9).error == "was killed by SIGKILL"
    record_event(folder, "phase", name="starting workers")
    record_event(folder, "failed", rank=0, error="no CUDA device is visible")
    assert status_of(folder, 9).error == "no CUDA device is visible"


def test_checkpoints_that_a_start_passed_by_do_not_count(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0)
    for step in (10, 20):
        record_event(folder, "checkpoint", step=step, seconds=0.1)
    assert status_of(folder, 99).checkpoint_step == 20
    record_event(folder, "start", attempt=2, step=10)
    assert (status_of(folder, 99).checkpoint_step, status_of(folder, 99).step) == (10, 10)
    record_event(folder, "checkpoint", step=15, seconds=0.1)
    assert (status_of(folder, 99).checkpoint_step, status_of(folder, 99).step) == (15, 15)


def test_a_rollback_shows_until_the_next_start(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0, world_size=1, zero_stage=0)
    for step in (100, 200):
        write_step(folder, step, 1, second=0)
        record_event(folder, "checkpoint", step=step, seconds=0.1)
    record_event(folder, "start", attempt=2, step=200, world_size=1, zero_stage=0)
    write_step(folder, 250, 2, second=1)
    record_event(folder, "rollback", **{"to": 100, "from": 250})
    status = status_of(folder, 999)
    assert (status.state, status.step, status.checkpoint_step, status.tokens) == (
        "rolled back",
        100,
        100,
        6400,
    )
    assert "rolled back to 100 (from 250)" in drawn(status_card(status))
    assert "rolled back" in drawn(status_table([status]))
    with RunLock(folder, "launch"):
        status = status_of(folder, 999)
    assert (status.state, status.step, status.rolled_back_from) == ("starting", 100, None)
    record_event(folder, "start", attempt=3, step=100, world_size=1, zero_stage=0)
    write_step(folder, 101, 3, second=2)
    status = status_of(folder, 999)
    assert (status.state, status.step, status.checkpoint_step) == ("interrupted", 101, 100)
    assert "rolled back" not in drawn(status_card(status))


# How it ended ------------------------------------------------------------------------------------------

JOB = {"event": "job", "id": "1"}
START = {"event": "start", "attempt": 1, "step": 0}
STOPPED = {"event": "stopped", "step": 3}
REQUEUE = {"event": "requeue"}
KILLED = {"event": "failed", "rank": 3, "node": "node2", "error": "was killed by SIGKILL", "verdict": True}
LOST = {"event": "failed", "rank": 0, "node": "node1", "error": "connection closed by peer"}
NODE = {"event": "failed", "rank": None, "node": "node2", "error": "node node2 was lost", "kind": "node"}


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], None),
        ([JOB, START, {"event": "finished", "step": 9}], "finished"),
        ([JOB, START, STOPPED | {"reason": "umbel stop"}], "stopped by umbel stop"),
        ([JOB, START, STOPPED | {"reason": "control/stop"}], "stopped by the file control/stop"),
        ([JOB, START, STOPPED | {"reason": "umbel cancel by ann"}], "cancelled by ann"),
        ([JOB, START, STOPPED | {"reason": "SIGTERM"}], "stopped by SIGTERM"),
        ([JOB, START, STOPPED | {"reason": "time limit"}], "time limit, saved before it"),
        ([JOB, STOPPED | {"reason": "SIGUSR2"}, REQUEUE | {"why": "time limit"}], "time limit"),
        ([JOB, START, STOPPED | {"reason": "SIGTERM"}, REQUEUE | {"why": "preempted"}], "preempted"),
        ([JOB, START, KILLED], "crashed: rank 3 on node2: was killed by SIGKILL"),
        ([JOB, START, LOST, KILLED], "crashed: rank 3 on node2: was killed by SIGKILL"),
        ([JOB, START, NODE, REQUEUE | {"why": "node"}], "node node2 was lost"),
        ([JOB, START, {"event": "hang", "text": "hang: rank 3 on node2 is in a.py:1"}, KILLED],
         "hang: rank 3 on node2 is in a.py:1"),
        ([JOB, START, KILLED, {"event": "gave up", "why": "3 starts"}], "gave up: 3 starts"),
        ([JOB, START, KILLED, JOB, START], UNTOLD),
        ([JOB, START], UNTOLD),
    ],
)  # fmt: skip
def test_how_the_last_attempt_ended(events: list[dict[str, Any]], words: str | None) -> None:
    assert how_it_ended(events) == words


def test_of_a_run_that_works_the_attempt_before_is_told() -> None:
    assert how_it_ended([JOB, START], works=True) is None
    events = [JOB, START, KILLED, {"event": "restart", "why": "killed"}, JOB, START]
    assert how_it_ended(events, works=True) == "crashed: rank 3 on node2: was killed by SIGKILL"


def test_slurm_knows_who_sent_a_signal() -> None:
    events = [JOB, START, STOPPED | {"reason": "SIGTERM"}]
    assert how_it_ended(events, "cancelled by ann") == "cancelled by ann"
    assert how_it_ended([JOB, START], "node lost: node2") == "node lost: node2"


# One line, table, card ---------------------------------------------------------------------------------


def test_the_ideal_line() -> None:
    run = RunStatus(
        name="a", state="running", step=1200, steps=5000, loss=2.31, tokens_per_second=41_000.0, mfu=0.43,
        eta=21_600.0, checkpoint_step=1100, checkpoint_age=185.0, walltime_left=7_800.0, nodes=24,
        slowest=Lag(rank=130, node="node-17", share=0.09),
    )  # fmt: skip
    assert status_line(run) == (
        "step 1200/5000 · loss 2.310 · 41k tok/s · MFU 43 % · ETA 6h00 · ckpt 3 min ago"
        " · walltime left 2h10 · slowest node-17 +9 %"
    )


def test_the_card_of_a_run_that_works(folder: RunFolder) -> None:
    record_event(folder, "job", id="12", nodes=["node1", "node2"], deadline=time.time() + 7825)
    record_event(folder, "start", attempt=1, step=0, world_size=8, zero_stage=3)
    write_step(folder, 1, 1, second=0)
    request_stop(folder)
    with RunLock(folder):
        found = status_of(folder, steps=9)
    assert (found.nodes, found.job, found.asked_to_stop) == (2, "12", "umbel stop")
    assert found.walltime_left == pytest.approx(7825, abs=5)
    shown = drawn(status_card(found))
    for words in ("running on 2 nodes", "walltime left 2h10", "asked to end", "umbel stop", "8 processes"):
        assert words in shown


def test_the_card_tells_where_the_time_went(folder: RunFolder) -> None:
    events = [
        {"event": "submitted", "time": "2026-11-23T08:00:00+00:00", "job": "1", "script": "a"},
        {"event": "job", "time": "2026-11-23T08:10:00+00:00", "id": "1"},
        {"event": "start", "time": "2026-11-23T08:11:00+00:00", "attempt": 1, "step": 0},
    ]
    line = {"step": 1, "attempt": 1, "time": "2026-11-23T09:00:00+00:00", "step_seconds": 2940.0}
    run = RunStatus(name="a", state="stopped", step=1, steps=9, goodput=goodput(events, [line]))
    shown = drawn(status_card(run))
    assert "81.7 % of 1h00 went into useful steps" in shown
    assert "queueing 10m00 (16.7 %), starting 1m00 (1.7 %)" in shown
    assert "1 of 1 steps (100 %)" in shown


# Without Slurm, and with ------------------------------------------------------------------------------


def make(runs: Path, name: str, *overrides: str) -> RunFolder:
    made = RunFolder(runs / name).create()
    save(compose([*TINY, f"run.name={name}", *overrides]), made.run_yaml)
    return made


def test_a_copied_folder_tells_what_needs_no_slurm(tmp_path: Path) -> None:
    folder = make(tmp_path / "runs", "queued", "cluster.launcher=slurm")
    record_event(folder, "submitted", job="12", script="job/attempt-0001/submit.sh")
    command = [sys.executable, "-m", "umbel", "status", "--json"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads(done.stdout)
    assert (found["state"], found["job"], found["waiting_for"]) == ("queued", "12", None)


SLEEP = """#!/bin/bash
#SBATCH --job-name={name} --output=/dev/null --mem=100 --nodes={nodes} --time=5 {more}
exec sleep 300
"""


def submit(cluster: SlurmCluster, folder: RunFolder, nodes: int = 1, more: str = "") -> str:
    script = folder.attempt_job(1) / "submit.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SLEEP.format(name=folder.name, nodes=nodes, more=more))
    job = cluster.command("sbatch", "--parsable", str(script))
    record_event(folder, "submitted", job=job, script="job/attempt-0001/submit.sh")
    return job


@pytest.mark.slow
def test_what_slurm_says_of_each_run_in_one_question(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a-works", "b-waits", "c-held", "d-cancelled", "e-lost")
    folders = {name: make(tmp_path / "runs", name, "cluster.launcher=slurm") for name in names}
    works = submit(cluster, folders["a-works"], 2, "--nodelist=node1,node2")
    lost = submit(cluster, folders["e-lost"], 2, "--no-requeue --nodelist=node3,node4")
    cancelled = submit(cluster, folders["d-cancelled"], 1, "--hold")
    held = submit(cluster, folders["c-held"], 1, "--hold")
    for name, job, nodes in (("a-works", works, ["node1", "node2"]), ("e-lost", lost, ["node3", "node4"])):
        cluster.wait(job, "RUNNING")
        record_event(folders[name], "job", id=job, nodes=nodes, deadline=None)
    waits = submit(cluster, folders["b-waits"], 4)
    cluster.command("scancel", cancelled)
    cluster.lose("node4")
    cluster.wait(lost, "NODE_FAIL")
    asked = count_asks(monkeypatch)
    deadline = time.monotonic() + 20
    while True:  # the queue is sorted, and accounts are written, a moment later
        asked.clear()
        found = {run.name: run for run in statuses(folders.values())}
        if found["d-cancelled"].ended and found["e-lost"].ended and found["b-waits"].waiting_for:
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    assert asked.count("squeue") == 1 and asked.count("sacct") <= 1
    assert {name: run.state for name, run in found.items()} == {
        "a-works": "starting",
        "b-waits": "queued",
        "c-held": "queued",
        "d-cancelled": "stopped",
        "e-lost": "interrupted",
    }
    assert found["a-works"].nodes == 2
    assert found["a-works"].walltime_left == pytest.approx(300, abs=60)
    assert (found["c-held"].job, found["c-held"].waiting_for) == (held, "held by its user")
    assert found["d-cancelled"].ended == f"cancelled by {getpass.getuser()}"
    assert found["e-lost"].ended == "node lost: node4"
    closely = one_status(folders["b-waits"])
    assert (closely.job, closely.queue_position, closely.state) == (waits, 1, "queued")
    assert closely.waiting_for is not None
    assert f"job {waits} · place 1 in the queue" in drawn(status_card(closely))


def count_asks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The Slurm commands that are run from now on."""
    from launch.slurm import ask

    asked: list[str] = []
    real = ask.run

    def run(*command: str, **more: Any) -> Any:
        asked.append(command[0])
        return real(*command, **more)

    monkeypatch.setattr(ask, "run", run)
    return asked


def test_a_slurm_that_does_not_answer_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("squeue", "sbatch"):
        broken = tmp_path / "bin" / name
        broken.parent.mkdir(exist_ok=True)
        broken.write_text(
            "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n"
        )
        broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    folder = make(tmp_path / "runs", "queued", "cluster.launcher=slurm")
    record_event(folder, "submitted", job="12", script="job/attempt-0001/submit.sh")
    told: list[str] = []
    assert [run.state for run in statuses([folder], told.append)] == ["queued"]
    assert "Unable to contact slurm controller" in told[0]
