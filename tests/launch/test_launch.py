"""The launcher from outside, with a stand-in for the worker: exit codes, signals, locks, what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from record.control import request_stop
from record.events import latest, read_events
from record.folder import RunFolder
from record.lock import is_held
from record.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("launch_stand_in.py")
TINY = (
    "data.path=text.jsonl", "data.tokenizer.vocab_size=300", "data.sequence_length=32",
    "model.config.hidden_size=32", "model.config.vocab_size=300",
    "schedule.warmup_steps=1", "schedule.global_batch=4",
    "cluster.device=cpu", "parallelism=zero2", "run.name=a",
)  # fmt: skip
LONG = "schedule.steps=2000"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


class Place:
    """A folder where `umbel` is typed."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.started = folder, []
        self.run = RunFolder(folder / "runs" / "a")
        self.environment = {
            **os.environ,
            "UMBEL_CACHE": str(cache),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        text = [json.dumps({"text": f"one flower, {number} stalks, one point"}) for number in range(200)]
        (folder / "text.jsonl").write_text("\n".join(text) + "\n")

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=self.folder, env=self.environment | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def umbel(self, *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=90)
        return process.returncode, out + err

    def launch(self, *arguments: str, processes: int = 1, **variables: str) -> tuple[int, str]:
        return self.umbel(
            "launch", "--yes", *TINY, f"parallelism.processes={processes}", *arguments, **variables
        )

    def start_long(self, processes: int = 1, **variables: str) -> subprocess.Popen[str]:
        """A launch that is well under way."""
        arguments = ("launch", "--yes", *TINY, LONG, f"parallelism.processes={processes}")
        started = self.start(*arguments, **variables)
        self.wait_for(lambda: len(read_metrics(self.run)) > 3)
        return started

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ending(self) -> str | None:
        event = latest(read_events(self.run), "finished", "stopped", "failed")
        return event and event["event"]

    def processes(self, mark: str) -> list[psutil.Process]:
        """The run's processes with this word in their command, whoever their parent is. The supervisor's
        command holds its workers', too."""
        found = [(process, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        place = str(self.run.path.resolve())
        return [
            process
            for process, words in found
            if mark in words
            and any(word.startswith(place) for word in words)
            and (mark == "launch.supervise" or "launch.supervise" not in words)
        ]

    def workers(self) -> list[int]:
        """Those that work on the run, and those that started them."""
        return [process.pid for process in self.processes(str(self.run.run_yaml))]

    def starts(self) -> int:
        return len([event for event in read_events(self.run) if event["event"] == "start"])


@pytest.fixture
def place(tmp_path: Path, cache: Path) -> Iterator[Place]:
    made = Place(tmp_path, cache)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()
    for pid in made.workers():
        os.kill(pid, signal.SIGKILL)


def test_to_the_end_and_again(place: Place) -> None:
    code, text = place.launch("schedule.steps=5")
    assert code == 0, text
    assert "a finished at step 5" in text
    assert [line["step"] for line in read_metrics(place.run)] == [1, 2, 3, 4, 5]
    job = json.loads((place.run.attempt_job(1) / "job.json").read_text())
    assert job["world_size"] == 1
    assert "umbel launch --yes data.path=text.jsonl" in job["command"]
    assert (place.run.attempt_job(1) / "run.yaml").read_text() == place.run.run_yaml.read_text()
    code, text = place.launch("schedule.steps=5")
    assert (code, "a is finished" in text) == (0, True)


def test_another_config_is_refused_and_shown_and_may_be_forced(place: Place) -> None:
    place.launch("schedule.steps=3")
    before = place.run.run_yaml.read_text()
    code, text = place.launch("schedule.steps=6", "optimizer.lr=0.5", "checkpoint.every=7")
    assert code == 2
    assert "belongs to another run: 2 of its keys differ" in text
    assert "optimizer.lr" in text
    assert "0.5" in text
    assert "checkpoint.every" not in text
    assert place.run.run_yaml.read_text() == before
    code, text = place.umbel("resume", "a", "schedule.steps=6")
    assert code == 2
    code, text = place.umbel("resume", "a", "schedule.steps=6", "--change")
    assert code == 0, text
    assert [line["step"] for line in read_metrics(place.run)] == [1, 2, 3, 4, 5, 6]
    change = latest(read_events(place.run), "change")
    assert change is not None
    assert change["keys"] == {"schedule.steps": [3, 6]}
    assert (place.run.attempt_job(1) / "run.yaml").read_text() == before


def test_ctrl_c_saves_and_exits_130(place: Place) -> None:
    launcher = place.start_long()
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert "a stopped at step" in err
    assert place.ending() == "stopped"
    assert not is_held(place.run, "launch")


def test_a_second_ctrl_c_kills(place: Place) -> None:
    launcher = place.start_long(STAND_IN="deaf")
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.6)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert "killed" in err
    assert place.ending() is None
    place.wait_for(lambda: not place.workers())


def test_sigterm_saves(place: Place) -> None:
    launcher = place.start_long()
    launcher.terminate()
    launcher.communicate(timeout=30)
    assert launcher.returncode == 143
    assert place.ending() == "stopped"


def test_kill_9_of_the_launcher_saves_and_the_next_start_waits_for_it(place: Place) -> None:
    launcher = place.start_long()
    launcher.kill()
    code, text = place.umbel("resume", "a", UMBEL_STOP_AFTER="40")
    assert code == 0, text
    steps = [line["step"] for line in read_metrics(place.run)]
    assert steps == list(range(1, 41))
    first = latest(read_events(place.run)[:-3], "stopped")
    assert first is not None


def test_a_run_in_use_is_refused(place: Place) -> None:
    launcher = place.start_long()
    code, text = place.launch(LONG)
    assert code == 2
    assert f"in use by process {launcher.pid} on" in text
    assert "umbel stop runs/a" in text or "umbel stop a" in text
    assert launcher.poll() is None


def test_detached_it_outlives_the_launcher_and_obeys_stop(place: Place) -> None:
    code, text = place.launch(LONG, "--detach")
    assert code == 0, text
    assert "umbel logs a -f" in text
    place.wait_for(lambda: len(read_metrics(place.run)) > 3)
    code, text = place.launch(LONG)
    assert (code, "in use by process" in text) == (2, True)
    code, text = place.umbel("stop", "a", "--wait")
    assert (code, "a is stopped" in text) == (0, True)
    place.wait_for(lambda: not place.workers())
    assert place.ending() == "stopped"


def test_a_failure_is_told_in_the_workers_words(place: Place) -> None:
    code, text = place.launch(LONG, STAND_IN="fail")
    assert code == 2
    assert text.endswith("umbel: error: rank 0: loss is NaN at step 3; umbel logs a --rank 0\n")


def test_a_crash_that_comes_again_is_given_up_and_shows_the_end_of_the_log(place: Place) -> None:
    code, text = place.launch(LONG, STAND_IN="crash")
    assert code == 1
    assert "RuntimeError: a fault nobody foresaw" in text
    assert "gave up: 3 starts in a row brought no checkpoint" in text
    assert (place.ending(), place.starts()) == ("failed", 3)


def test_a_crash_before_the_first_step_is_told_at_once(place: Place) -> None:
    code, text = place.launch(LONG, STAND_IN="early")
    assert code == 1
    assert "RuntimeError: a fault before the first step" in text
    assert not [event for event in read_events(place.run) if event["event"] in ("restart", "gave up")]


def test_a_killed_worker_is_named(place: Place) -> None:
    code, text = place.launch(LONG, "supervision.restarts=1", STAND_IN="kill")
    assert code == 1
    assert "rank 0: was killed by SIGKILL" in text
    assert place.starts() == 1


@pytest.mark.parametrize("fault", ["kill-once", "crash-once"])
def test_a_worker_that_fails_is_started_again_by_itself(place: Place, fault: str) -> None:
    code, text = place.launch("schedule.steps=8", STAND_IN=fault)
    assert code == 0, text
    assert (place.ending(), place.starts()) == ("finished", 2)
    assert [line["step"] for line in read_metrics(place.run)] == list(range(1, 9))
    restart = latest(read_events(place.run), "restart")
    assert restart is not None
    assert restart["streak"] == 1


def test_kill_9_of_the_supervisor_saves_and_the_next_start_goes_on(place: Place) -> None:
    launcher = place.start_long()
    (supervisor,) = place.processes("launch.supervise")
    supervisor.kill()
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "its supervisor: was killed by SIGKILL" in err
    assert not place.workers()
    assert place.ending() == "stopped"
    code, text = place.umbel("resume", "a", UMBEL_STOP_AFTER="40")
    assert code == 0, text
    assert [line["step"] for line in read_metrics(place.run)] == list(range(1, 41))


def test_kill_9_of_a_detached_supervisor_saves_and_the_next_start_waits_for_it(place: Place) -> None:
    code, text = place.launch(LONG, "--detach", STAND_IN="slow")
    assert code == 0, text
    place.wait_for(lambda: len(read_metrics(place.run)) > 3)
    (supervisor,) = place.processes("launch.supervise")
    supervisor.kill()
    code, text = place.umbel("resume", "a", UMBEL_STOP_AFTER="40")
    assert code == 0, text
    assert "an earlier attempt is still saving" in text
    assert [line["step"] for line in read_metrics(place.run)] == list(range(1, 41))


def test_a_stop_request_of_an_earlier_start_does_not_count(place: Place) -> None:
    place.run.create()
    request_stop(place.run)
    code, _ = place.launch("schedule.steps=3")
    assert (code, place.ending()) == (0, "finished")


def test_a_busy_port_is_told(place: Place) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = place.launch(LONG, processes=2, MASTER_PORT=str(port))
    assert code == 2
    assert f"MASTER_PORT: port {port} is busy" in text
    assert not place.run.path.exists()


def test_a_folder_deleted_meanwhile_is_told(place: Place) -> None:
    launcher = place.start_long()
    # Out of the way first: somebody may be writing there.
    shutil.rmtree(place.run.path.rename(place.folder / "gone"), ignore_errors=True)
    _, text = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "was deleted while it ran" in text
    assert "Traceback" not in text


def test_bad_data_starts_nothing(place: Place) -> None:
    (place.folder / "text.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    code, text = place.launch("schedule.steps=3")
    assert code == 2
    assert "text.jsonl:2" in text
    assert not place.run.path.exists()


@pytest.mark.slow
def test_torchrun_ctrl_c_and_a_killed_rank(place: Place) -> None:
    launcher = place.start_long(processes=2)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=60)
    assert (launcher.returncode, place.ending()) == (130, "stopped")
    code, text = place.umbel("resume", "a", STAND_IN="kill-1-once", UMBEL_STOP_AFTER="80")
    assert code == 0, text
    failed = latest(read_events(place.run), "failed")
    assert failed is not None
    assert (failed["rank"], place.starts()) == (1, 3)
    assert "was killed by SIGKILL" in failed["error"]


@pytest.mark.slow
def test_torchrun_killed_leaves_no_orphans_and_is_started_again(place: Place) -> None:
    launcher = place.start_long(processes=2)
    (agent,) = place.processes("torch.distributed.run")
    before = set(place.workers())
    agent.kill()
    place.wait_for(lambda: place.starts() == 2)
    assert not before & set(place.workers())
    failed = latest(read_events(place.run), "failed")
    assert failed is not None
    assert (failed["rank"], "was killed by SIGKILL" in failed["error"]) == (None, True)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=60)
    assert (launcher.returncode, place.ending()) == (130, "stopped")
    place.wait_for(lambda: not place.workers())


def test_ctrl_c_before_the_workers_is_one_line(place: Place) -> None:
    launcher = place.start("launch", "--yes", *TINY, WAIT="prepare")
    # Not sooner: while a C library is imported, Python may lose the interrupt.
    place.wait_for(lambda: any(event.get("name") == "preparing data" for event in read_events(place.run)))
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert err.strip().splitlines()[-1] == "stopped before the workers started"
    assert not place.run.path.exists()


def test_examples_that_were_cut_are_told_and_a_verdict_is_recorded(place: Place) -> None:
    once = "supervision.restarts=1"
    code, text = place.launch("data.packing=none", "data.sequence_length=8", LONG, once, STAND_IN="survivor")
    assert code == 1
    assert "of 200 examples were cut to data.sequence_length=8" in text
    told = [event for event in read_events(place.run) if event["event"] == "failed"]
    assert [event.get("verdict") for event in told] == [None, True]
    assert "SIGKILL" in told[-1]["error"]
