from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from base.errors import UmbelError
from configs.compose import compose, save
from launch.cancel import processes_of
from launch.cli import app
from record.events import latest, read_events, record_event
from record.folder import RunFolder
from record.lock import RunLock, is_held
from record.state import run_state
from support.runs import TINY
from support.slurm import SlurmCluster

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("stand_in_worker.py")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    return make(tmp_path / "runs" / "tiny")


def make(path: Path, *overrides: str) -> RunFolder:
    made = RunFolder(path).create()
    save(compose([*TINY, "schedule.steps=5000", "cluster.device=cpu", *overrides]), made.run_yaml)
    return made


def umbel(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def wait_for(told: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def supervised(folder: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    """The real supervisor with a stand-in for the worker, some steps on; its launcher is this process."""
    place = str(folder.path.resolve())
    worker = [sys.executable, str(STAND_IN), str(folder.run_yaml.resolve())]
    supervisor = subprocess.Popen(
        [sys.executable, "-P", "-m", "launch.supervise", place, "--", *worker],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: folder.metrics.exists())
    yield supervisor
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    for process in processes_of(folder):
        process.kill()


@pytest.mark.slow
def test_it_ends_supervisor_and_workers_at_once_and_without_a_save(
    folder: RunFolder, supervised: subprocess.Popen[bytes]
) -> None:
    found = processes_of(folder)
    assert supervised.pid in [process.pid for process in found]
    assert any(str(STAND_IN) in process.cmdline() for process in found)
    assert "was ended" in umbel("cancel", "tiny", "--yes").stderr
    assert supervised.wait(5) == -signal.SIGKILL
    wait_for(lambda: not any(process.is_running() for process in found))
    assert not is_held(folder, "launch")
    events = read_events(folder)
    assert latest(events, "checkpoint") is None
    assert run_state(folder, events) == "stopped"
    assert json.loads(umbel("status", "tiny", "--json").stdout)["ended"].startswith("cancelled by ")
    with pytest.raises(UmbelError, match="is not running; it is stopped"):
        umbel("cancel", "tiny", "--yes")


def test_what_does_not_run_is_refused_and_nothing_is_done_unless_somebody_says_yes(folder: RunFolder) -> None:
    with pytest.raises(UmbelError, match="tiny: is not running; it is new"):
        umbel("cancel", "tiny")
    with RunLock(folder), pytest.raises(UmbelError, match="nobody is here to say yes; pass --yes"):
        umbel("cancel", "tiny")
    assert read_events(folder) == []


def test_a_run_of_another_machine_is_told_of(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.cancel.holder", lambda *_: {"pid": 1, "host": "elsewhere"})
    with pytest.raises(UmbelError, match="tiny: runs on elsewhere; go there, or umbel stop tiny"):
        umbel("cancel", "tiny", "--yes")


def test_a_file_that_is_open_elsewhere_is_not_taken_for_a_worker(folder: RunFolder) -> None:
    reader = [sys.executable, "-c", "import sys; sys.stdin.read()", str(folder.run_yaml.resolve())]
    with subprocess.Popen(reader, stdin=subprocess.PIPE) as process:
        assert processes_of(folder) == []
        assert process.poll() is None
        process.terminate()


SCRIPT = """#!/bin/bash
#SBATCH --job-name=tiny --output=/dev/null --open-mode=append --nodes=2 --mem=100 --requeue
trap 'echo batch >> {told}' TERM
srun --overlap bash -c "trap 'echo saved >> {told}; exit' TERM; while true; do sleep 0.1; done" &
echo runs >> {told}
while true; do sleep 0.1; done
"""


@pytest.mark.slow
def test_on_slurm_it_ends_the_job_and_the_rest_of_its_chain(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make(tmp_path / "runs" / "tiny", "cluster.launcher=slurm")
    script, told = folder.attempt_job(1) / "submit.sh", tmp_path / "told"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.format(told=told))
    first = cluster.command("sbatch", "--parsable", str(script))
    second = cluster.command("sbatch", "--parsable", f"--dependency=afterany:{first}", str(script))
    for job in (first, second):
        record_event(folder, "submitted", job=job, script="job/attempt-0001/submit.sh")
    cluster.wait(first, "RUNNING")
    wait_for(lambda: told.exists())
    time.sleep(1)
    assert f"(job {first}, {second})" in umbel("cancel", "tiny", "--yes").stderr
    assert cluster.wait(first, seconds=20) in ("CANCELLED", "FAILED")
    assert cluster.state(second) == "CANCELLED"
    assert told.read_text() == "runs\n", "nothing was asked to save"
    assert read_events(folder)[-1]["event"] == "stopped"
    with pytest.raises(UmbelError, match="is not running; it is stopped"):
        umbel("cancel", "tiny", "--yes")
