from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from base.errors import UmbelError
from configs.compose import compose, save
from launch import following
from launch.cli import app
from launch.first_error import faults
from launch.logs import Log, merged, worker_logs
from launch.screens.logs import print_logs
from record.events import record_event
from record.folder import RunFolder
from record.lock import RunLock
from support.slurm import SlurmCluster


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    made = RunFolder(tmp_path / "runs" / "bloom").create()
    save(compose(["experiment=demo", "run.name=bloom"]), made.run_yaml)
    return made


def umbel(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write(folder: RunFolder, attempt: int, rank: int, text: str, node: str | None = None) -> Path:
    log = folder.rank_log(attempt, rank)
    log = log if node is None else log.with_name(f"{log.stem}.{node}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        file.write(text)
    return log


def test_ranks_are_merged_by_time_where_they_tell_one(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0)
    write(folder, 1, 0, "[2026-11-23 08:00:01,500] a\n  more of a\n2026-11-23T08:00:03 c\n", "node1")
    write(folder, 1, 1, "2026-11-23 08:00:02 b\n2026-11-23 08:00:04 d\n", "node2")
    assert umbel("logs", "bloom").output.splitlines() == [
        "0@node1 │ [2026-11-23 08:00:01,500] a",
        "0@node1 │   more of a",
        "1@node2 │ 2026-11-23 08:00:02 b",
        "0@node1 │ 2026-11-23T08:00:03 c",
        "1@node2 │ 2026-11-23 08:00:04 d",
    ]


def test_lines_without_a_time_come_in_turn_and_one_log_alone_has_no_label(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0)
    write(folder, 1, 0, "a\nb\n")
    assert umbel("logs", "bloom").output == "a\nb\n"
    write(folder, 1, 1, "c\nd")
    assert umbel("logs", "bloom").output == "0 │ a\n0 │ b\n1 │ c\n1 │ d\n"
    assert umbel("logs", "bloom", "--rank", "1").output == "c\nd\n"


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.file.write_bytes(b"whole\nto")
    assert [line for _, line in merged([log])] == [b"whole"]
    with log.file.open("ab") as file:
        file.write(b"rn\n")
    assert [line for _, line in merged([log])] == [b"torn"]


def test_an_attempt_and_a_rank_are_found_or_missed_by_name(folder: RunFolder) -> None:
    for attempt in (1, 2):
        record_event(folder, "start", attempt=attempt, step=0)
        write(folder, attempt, 0, f"attempt {attempt}\n", "node1")
    assert umbel("logs", "bloom").output == "attempt 2\n"
    assert umbel("logs", "bloom", "--attempt", "1").output == "attempt 1\n"
    with pytest.raises(UmbelError, match="no log of rank 3 in attempt 2; ranks that wrote one: 0"):
        umbel("logs", "bloom", "--rank", "3")
    with pytest.raises(UmbelError, match="no log of rank 0 in attempt 7; that attempt wrote none"):
        umbel("logs", "bloom", "--attempt", "7")


def test_the_first_fault_comes_first(folder: RunFolder) -> None:
    record_event(folder, "job", id="1", nodes=["node1", "node2"])
    record_event(folder, "start", attempt=1, step=0)
    write(folder, 1, 0, "step 1\nconnection closed by peer\n", "node1")
    write(folder, 1, 1, "".join(f"line {number}\n" for number in range(50)) + "disk is full\n", "node2")
    record_event(folder, "failed", rank=1, node="node2", error="No space left on device", exit_code=1)
    record_event(folder, "failed", rank=0, node="node1", error="connection closed by peer", exit_code=1)
    shown = umbel("logs", "bloom").output.splitlines()
    assert shown[0] == "── attempt 1: rank 1 on node2: No space left on device"
    assert (shown[1], shown[20]) == ("   line 31", "   disk is full")
    assert shown[21].startswith("0@node1 │ step 1")
    errors = umbel("logs", "bloom", "--errors").output
    assert errors.index("No space left") < errors.index("connection closed")
    assert "0@node1" not in errors


def test_faults_of_an_attempt(folder: RunFolder) -> None:
    assert umbel("logs", "bloom", "--errors").stderr == "bloom: nothing went wrong\n"
    record_event(folder, "job", id="1")
    record_event(folder, "start", attempt=1, step=0)
    record_event(folder, "hang", text="hang: rank 3 on node2 is in data/stream.py:88", stack=["a.py:1 f"])
    record_event(folder, "job", id="1")
    words = "Traceback\nRuntimeError: boo"
    record_event(folder, "failed", rank=0, error="ended with exit code 1", words=words, verdict=True)
    record_event(folder, "gave up", why="2 starts in a row")
    assert [(fault.text, fault.words) for fault in faults(folder, 1)] == [
        ("attempt 1: hang: rank 3 on node2 is in data/stream.py:88", ["  a.py:1 f"]),
        ("gave up: 2 starts in a row", []),
    ]
    (fault,) = faults(folder)
    assert fault.text == "attempt 2: rank 0: ended with exit code 1"
    assert fault.words == ["Traceback", "RuntimeError: boo"]


def test_what_the_launcher_and_slurm_printed(folder: RunFolder) -> None:
    (folder.logs / "launch.log").write_text("from the supervisor\n")
    assert umbel("logs", "bloom", "--launcher").output == "from the supervisor\n"
    (folder.logs / "slurm-12.log").write_text("srun: error\n")
    assert set(umbel("logs", "bloom", "--launcher").output.splitlines()) == {
        "launch │ from the supervisor",
        "slurm-12 │ srun: error",
    }


def test_following_goes_on_through_attempts(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    record_event(folder, "start", attempt=1, step=0)
    write(folder, 1, 0, "first\n")
    printed: list[Result] = []
    with RunLock(folder, "launch"):
        follower = threading.Thread(target=lambda: printed.append(umbel("logs", "bloom", "-f")))
        follower.start()
        time.sleep(0.8)
        record_event(folder, "restart", why="killed", streak=0)
        record_event(folder, "start", attempt=2, step=0)
        write(folder, 2, 0, "second\n")
        time.sleep(0.8)
        write(folder, 2, 0, "third\n")
    follower.join(10)
    assert not follower.is_alive()
    assert printed[0].stdout == "first\nsecond\nthird\n"
    assert printed[0].stderr == "bloom: the workers are started again (killed)\n"


def test_a_log_that_gets_its_nodes_name_is_not_printed_twice(folder: RunFolder) -> None:
    record_event(folder, "start", attempt=1, step=0)
    log, rounds = write(folder, 1, 0, "first\n"), [True, True, False]

    def goes_on() -> bool:
        if len(rounds) == 2:
            log.rename(log.with_name("rank-00000.node1.log"))
            write(folder, 1, 0, "second\n", "node1")
        return rounds.pop(0)

    printed = CliRunner()
    with printed.isolation() as (out, *_):
        print_logs(lambda: worker_logs(folder, None, None), goes_on)
        assert out.getvalue() == b"first\nsecond\n"


def test_following_waits_for_a_job_that_waits(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following.Following, "_ask", lambda *_: None)
    told: list[str] = []
    goes_on = following.Following(folder, told.append)
    assert not goes_on()
    record_event(folder, "requeue", why="preempted", job="3")
    assert goes_on()
    assert told == ["bloom: requeued (preempted): waits for its turn"]
    record_event(folder, "finished", step=9)
    assert not goes_on()


TWO_STARTS = """#!/bin/bash
#SBATCH --job-name=bloom --output=/dev/null --requeue --mem=100
cd {folder}
n=$(( ${{SLURM_RESTART_COUNT:-0}} + 1 ))
tell() {{ echo "{{\\"time\\": \\"$(date -u +%FT%T.%3N+00:00)\\", \\"event\\": $1}}" >> events.jsonl; }}
tell '"job", "id": "'$SLURM_JOB_ID'", "nodes": ["'$SLURMD_NODENAME'"]'
tell '"start", "attempt": '$n', "step": 0'
mkdir -p logs/attempt-000$n
echo "start $n" >> logs/attempt-000$n/rank-00000.log
sleep 2
[ $n = 2 ] && tell '"finished", "step": 9' && exit
tell '"requeue", "why": "preempted", "job": "'$SLURM_JOB_ID'"'
scontrol requeue $SLURM_JOB_ID
sleep 60
"""


@pytest.mark.slow
def test_following_goes_on_through_a_requeue(
    cluster: SlurmCluster, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "ASK_SECONDS", 0.5)
    script = folder.attempt_job(1) / "submit.sh"
    script.parent.mkdir(parents=True)
    script.write_text(TWO_STARTS.format(folder=folder.path))
    job = cluster.command("sbatch", "--parsable", str(script))
    record_event(folder, "submitted", job=job, script="job/attempt-0001/submit.sh")
    deadline = time.monotonic() + 30
    while not list(folder.logs.rglob("rank-00000.log")):
        assert time.monotonic() < deadline, cluster.job(job)
        time.sleep(0.1)
    printed: list[Result] = []
    follower = threading.Thread(target=lambda: printed.append(umbel("logs", "bloom", "-f")))
    follower.start()
    deadline = time.monotonic() + 30
    while "requeue" not in folder.events.read_text():
        assert time.monotonic() < deadline, cluster.job(job)
        time.sleep(0.1)
    cluster.release(job)
    follower.join(60)
    assert not follower.is_alive()
    assert printed[0].stdout == "start 1\nstart 2\n"
    told = printed[0].stderr.splitlines()
    assert told[0] == "bloom: requeued (preempted): waits for its turn"
    assert told[1].startswith("bloom: starts on node")
