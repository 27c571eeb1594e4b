"""Beats are whole or not there, cost next to nothing, and belong to one run, user and node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from base.errors import UmbelError
from record.folder import RunFolder
from record.heartbeats import (
    PHASES,
    Beat,
    Heart,
    NodeReport,
    beats_folder,
    clear_reports,
    forget,
    make_beats_folder,
    node_name,
    read_beats,
    read_reports,
    write_report,
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path / "runs" / "one").create()
    yield folder
    shutil.rmtree(beats_folder(folder), ignore_errors=True)


def test_a_beat_is_read_as_it_was_told(tmp_path: Path) -> None:
    before = time.time()
    heart = Heart(tmp_path, 3)
    assert read_beats(tmp_path) == []  # a file without a beat is none
    heart.beat("saving", 812, waited=1.5, worked=0.25, probes=7)
    (beat,) = read_beats(tmp_path)
    assert beat._replace(since=0.0) == Beat(3, os.getpid(), 812, "saving", 0.0, 1.5, 0.25, 7)
    assert before <= beat.since <= time.time()
    for phase in PHASES:
        heart.beat(phase, 813)
        assert read_beats(tmp_path)[0].phase == phase
    heart.close()
    assert not tmp_path.exists()  # the last one takes the folder with it


def test_ranks_come_in_order_and_torn_or_foreign_files_do_not_count(tmp_path: Path) -> None:
    for rank in (2, 0, 1):
        Heart(tmp_path, rank).beat("step", rank)
    whole = (tmp_path / "rank-00001").read_bytes()
    (tmp_path / "rank-00001").write_bytes(whole[:-1])
    (tmp_path / "rank-00007").write_bytes(b"")
    (tmp_path / "rank-00008").write_bytes(b"\xff" * len(whole))
    assert [beat.rank for beat in read_beats(tmp_path)] == [0, 2]
    (tmp_path / "rank-00002").write_bytes(b"\x01" + whole[1:])  # an odd number: it was being written
    assert [beat.rank for beat in read_beats(tmp_path)] == [0]


def test_a_reader_never_sees_half_a_beat(tmp_path: Path) -> None:
    """Facts that belong together, written as fast as can be while another process reads."""
    writer = (
        "import sys; from pathlib import Path; from record.heartbeats import Heart\n"
        "heart = Heart(Path(sys.argv[1]), 0); print(flush=True)\n"
        "for n in range(10**9):\n"
        "    heart.beat('step', n, waited=float(n), worked=float(n), probes=n); sum(range(200))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        seen, deadline = set(), time.monotonic() + 1.5
        while time.monotonic() < deadline:
            for beat in read_beats(tmp_path):
                assert beat.step == beat.waited == beat.worked == beat.probes
                seen.add(beat.step)
        assert len(seen) > 10
    finally:
        process.kill()
        process.wait()


def test_a_killed_rank_leaves_its_last_beat(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from record.heartbeats import Heart\n"
        "heart = Heart(Path(sys.argv[1]), 0); heart.beat('step', 5); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert [beat.step for beat in read_beats(tmp_path)] == [5]
    forget(tmp_path, 0)
    assert read_beats(tmp_path) == []


def test_a_process_that_still_ends_does_not_disturb_the_next_start(tmp_path: Path) -> None:
    old = Heart(tmp_path, 0)
    new = Heart(tmp_path, 0)
    new.beat("step", 9)
    old.beat("step", 1)
    old.close()
    assert [beat.step for beat in read_beats(tmp_path)] == [9]


def test_no_room_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    from support.small_disk import small_disk

    with small_disk(tmp_path / "small", "size=16k,nr_inodes=20") as disk:
        (disk.path / "filler").write_bytes(b"x" * 16384)
        with pytest.raises(OSError, match="No space left"):
            Heart(disk.path, 0)


def test_a_beat_costs_a_few_microseconds(tmp_path: Path) -> None:
    heart, best = Heart(tmp_path, 0), float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for step in range(2000):
            heart.beat("step", step)
        best = min(best, (time.perf_counter() - began) / 2000)
    assert best < 10e-6


def test_the_folder_is_one_for_each_run_and_node(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    here = make_beats_folder(run)
    assert here == beats_folder(RunFolder(run.path / ".." / run.path.name))
    assert here.stat().st_mode & 0o777 == 0o700
    assert beats_folder(RunFolder(run.path.with_name("two"))) != here
    monkeypatch.setenv("SLURMD_NODENAME", "node-of-slurm")
    assert node_name() == "node-of-slurm"
    assert beats_folder(run) != here


def test_a_folder_that_somebody_else_put_there_is_refused(run: RunFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    beats_folder(run).symlink_to(elsewhere)
    try:
        with pytest.raises(UmbelError, match="somebody else"):
            make_beats_folder(run)
    finally:
        beats_folder(run).unlink()


def test_reports_are_read_by_attempt_and_cleared(run: RunFolder) -> None:
    beat = Beat(0, 1, 2, "step", 3.0, 4.0, 5.0, 6)
    one = NodeReport(node="a", attempt=1, time=10.0, beats=[beat], facts={"load": 0.5})
    two = NodeReport(node="b", attempt=2, time=11.0, beats=[], facts={})
    assert read_reports(run, 1) == []
    write_report(run, one)
    write_report(run, two)
    (run.control / "nodes" / "c.json").write_text('{"node": "c"')
    (run.control / "nodes" / "d.json").write_text('["no report"]')
    assert read_reports(run, 1) == [one]
    assert read_reports(run, 2) == [two]
    clear_reports(run)
    assert read_reports(run, 1) == []
    assert list((run.control / "nodes").iterdir()) == []


def test_a_report_is_whole_while_it_is_replaced(run: RunFolder) -> None:
    report = NodeReport(node="a", attempt=1, time=1.0, beats=[Beat(0, 1, 2, "step", 3.0)] * 50, facts={})
    write_report(run, report)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            write_report(run, report)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(300):
            assert read_reports(run, 1) == [report]
    finally:
        stop.set()
        thread.join()
