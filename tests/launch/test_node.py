"""The watcher of a node: what it reports, when it ends, what it removes, and what holds it up."""

from __future__ import annotations

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

from base.files import read_json
from launch.supervise import machine, node
from launch.supervise.machine import Machine, disk_facts, quick_facts
from launch.supervise.node import Watcher, lives
from launch.supervise.stacks import request_stacks, stacks_folder
from record.folder import RunFolder
from record.heartbeats import (
    Beat,
    Heart,
    NodeReport,
    beats_folder,
    make_beats_folder,
    node_name,
    read_beats,
    read_reports,
)
from support.runs import freeze, tiny

DEAD = 2**22 + 1
"""No process has this number."""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    folder = freeze(tiny(tmp_path))
    yield folder
    shutil.rmtree(beats_folder(folder), ignore_errors=True)


def until(what: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def watcher(run: RunFolder, attempt: int = 1) -> Watcher:
    return Watcher(run, attempt, {"run": run.path})


def test_it_reports_beats_and_facts(run: RunFolder) -> None:
    heart = Heart(make_beats_folder(run), 0)
    heart.beat("step", 7)
    watching = watcher(run)
    until(lambda: "disks" in watching.machine.facts())
    watching.look(100.0)
    (report,) = read_reports(run, 1)
    assert report.node == node_name()
    assert [beat.step for beat in report.beats] == [7]
    assert 0 < report.facts["memory_available"] <= report.facts["memory"]
    assert report.facts["disks"]["run"]["bytes_used"] > 0
    assert "gone" not in report.facts
    heart.beat("step", 8)
    watching.look(101.0)  # too soon
    assert read_reports(run, 1) == [report]
    watching.look(102.5)
    assert read_reports(run, 1)[0].beats[0].step == 8


def test_a_process_that_dies_is_reported_as_gone(run: RunFolder) -> None:
    watching = watcher(run)
    program = (
        "import sys; from pathlib import Path; from record.heartbeats import Heart\n"
        "Heart(Path(sys.argv[1]), 4).beat('step', 5)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(make_beats_folder(run))], check=True)
    watching.look(100.0)
    (report,) = read_reports(run, 1)
    assert [beat.rank for beat in report.beats] == [4]
    assert report.facts["gone"] == [4]
    watcher(run)  # the next start's removes it
    assert read_beats(beats_folder(run)) == []


def test_another_process_of_the_same_number_is_not_the_rank() -> None:
    now, mine = time.time(), psutil.Process().create_time()
    assert lives(Beat(0, os.getpid(), 1, "step", now))
    assert not lives(Beat(0, os.getpid(), 1, "step", mine - 60))
    assert not lives(Beat(0, DEAD, 1, "step", now))


def test_a_watcher_that_starts_late_leaves_living_ranks_alone(run: RunFolder) -> None:
    Heart(make_beats_folder(run), 0).beat("step", 7)
    watcher(run)
    assert [beat.step for beat in read_beats(beats_folder(run))] == [7]


def test_stacks_are_taken_once_and_only_for_its_attempt(run: RunFolder) -> None:
    watching = watcher(run, attempt=2)
    request_stacks(run, 1)
    number = request_stacks(run, 2)
    watching.look(100.0)
    answer = stacks_folder(run, 2, number) / f"{node_name()}.json"
    assert read_json(answer) == {}
    assert not stacks_folder(run, 1, 1).exists()
    written = answer.stat().st_mtime_ns
    watching.look(101.0)
    assert answer.stat().st_mtime_ns == written


def test_a_report_that_cannot_be_written_is_told_once(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, faults = watcher(run), [True, True, False]

    def write(folder: RunFolder, report: NodeReport) -> None:
        if faults.pop(0):
            raise OSError(28, "No space left on device", "reports")

    monkeypatch.setattr(node, "write_report", write)
    for _ in range(3):
        watching.reported = float("-inf")
        watching._look()
    assert capsys.readouterr().err == f"umbel: watcher on {node_name()}: reports: No space left on device\n"


def test_a_driver_or_disk_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "device_facts", lambda: time.sleep(600))
    looking = Machine({"run": tmp_path})
    assert looking.facts().keys() == quick_facts().keys()
    looking._looked -= 100
    assert looking.facts()["stuck"] >= 100


def test_a_disk_is_known_by_the_nearest_folder(tmp_path: Path) -> None:
    facts = disk_facts(tmp_path / "not" / "there")
    assert facts["path"] == str(tmp_path)
    assert 0 <= facts["bytes_used"] <= facts["bytes"]
    assert 0 <= facts["inodes_used"] <= facts["inodes"]


def command(run: RunFolder) -> list[str]:
    return [sys.executable, "-u", "-P", "-m", "launch.supervise.node", str(run.path), "1"]


@pytest.mark.slow
def test_the_real_one_reports_and_ends_when_told(run: RunFolder) -> None:
    Heart(make_beats_folder(run), 0).beat("step", 7)
    process = subprocess.Popen(command(run))
    try:
        until(lambda: read_reports(run, 1))
        process.terminate()
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_real_one_ends_with_its_parent(run: RunFolder) -> None:
    parent = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({command(run)!r})"])
    child = None
    try:
        until(lambda: read_reports(run, 1))
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        gone, _ = psutil.wait_procs([child], timeout=5)
        assert gone
    finally:
        parent.kill()
        parent.wait()
        if child is not None and child.is_running():
            child.kill()
