"""A run that hangs is found in time and named; one that is slow, or whose watchers fail, is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Supervision
from launch.supervise.detect.hang import HangDetector, usual_step
from launch.supervise.detect.odd import Seen, collective, describe, odd_ones
from launch.supervise.detect.progress import LONGEST_LOOK, SILENT_AT_START, SILENT_SECONDS, Progress
from launch.supervise.detect.reports import Reports
from launch.supervise.stacks import GONE, Frame, Stack, rank_file, requests, stacks_folder
from record.folder import RunFolder
from record.heartbeats import Beat, NodeReport, beats_folder, node_name, write_report
from record.metrics import MetricsWriter
from support.processes import free_port, worker_env

SETTINGS = Supervision(hang_seconds=60.0, hang_factor=10.0, start_minutes=5.0)


def beat(rank: int, step: int, phase: str = "step", since: float = 0.0) -> Beat:
    return Beat(rank, 1000 + rank, step, phase, since)


def report(now: float, *beats: Beat, node: str = "a", gone: Sequence[int] = ()) -> NodeReport:
    facts = {"gone": list(gone)} if gone else {}
    return NodeReport(node=node, attempt=1, time=now, beats=list(beats), facts=facts)


class Run:
    """A run's reports every two seconds, on a clock of their own."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.now, self.skew = progress, 1000.0, 5e5
        self.written = 0
        self.last: tuple[Beat, ...] = ()

    def live(self, seconds: float, *phases: tuple[str, float], first: int = 1) -> int:
        """Steps and what comes between them, again and again; returns the last step."""
        step, end = first, self.now + seconds
        while True:
            for phase, takes in phases:
                since = self.now + self.skew
                done = self.now + takes
                while self.now < done:
                    self.see(beat(0, step, phase, since), beat(1, step, phase, since))
                    if self.now >= end:
                        return step
                    self.now += min(2.0, max(0.01, done - self.now))
            step += 1

    def see(self, *beats: Beat) -> None:
        self.last = beats
        self.progress.observe(self.now, [report(self.now + self.skew, *beats)], self.written)

    def stand(self, step: int, phase: str = "step", limit: float = 1e5) -> float:
        """Begin something and never end it; returns after how long that is a hang."""
        began = self.now
        while not self.progress.overdue and self.now - began < limit:
            self.see(*(beat(rank, step, phase, began + self.skew) for rank in (0, 1)))
            self.now += 2.0
        return self.now - began


@given(step=st.floats(0.05, 100), evaluation=st.floats(0.05, 900), share=st.floats(0.01, 9))
def test_a_steady_run_never_hangs_and_a_hang_is_found_in_time(
    step: float, evaluation: float, share: float
) -> None:
    run = Run(Progress(SETTINGS, ["a"]))
    last = run.live(20 * (step + evaluation), ("step", step), ("evaluating", evaluation))
    assert not run.progress.overdue
    limit = max(60.0, 10 * step)
    assert run.stand(last + 1, limit=share * limit / 10) <= share * limit / 10 + 2
    assert not run.progress.overdue
    assert run.stand(last + 1) < 1.2 * limit + 10
    assert run.progress.overdue


def test_the_limit_follows_what_the_run_is_at() -> None:
    run = Run(Progress(SETTINGS, ["a"]))
    last = run.live(2000, ("step", 20.0), ("evaluating", 100.0))
    assert run.progress.usual("step") == pytest.approx(20, abs=3)
    assert run.progress.usual("evaluating") == pytest.approx(100, abs=3)
    assert 900 < run.stand(last + 1, "evaluating") < 1100
    run = Run(Progress(SETTINGS, ["a"]))
    last = run.live(2000, ("step", 20.0), ("evaluating", 100.0))
    assert 190 < run.stand(last + 1) < 230


def test_what_was_never_seen_gets_the_time_of_a_start() -> None:
    run = Run(Progress(SETTINGS, ["a"]))
    last = run.live(100, ("step", 1.0))
    assert 290 < run.stand(last, "saving") < 310


def test_before_the_first_step_only_the_start_counts() -> None:
    run = Run(Progress(SETTINGS, ["a"]))
    run.progress.usual_step = 0.5
    began = run.now
    for phase in ("starting", "data", "model", "restoring", "step"):
        run.see(beat(0, 0, phase, run.now))
        run.now += 50
        for _ in range(25):
            run.see(beat(0, 0, phase, run.now))
            assert not run.progress.overdue
    run.see(beat(0, 812, "step", run.now))  # the first step itself may compile
    assert not run.progress.stepped
    run.stand(812)
    assert run.now - began >= 300


def test_steps_that_pass_between_two_looks_are_known_by_the_metrics(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    detector = HangDetector(folder, quick(), 1, ["a"], Reports(folder, 1))
    write_report(folder, report(0.0, beat(0, 0, "starting")))
    detector.look(0.0)
    MetricsWriter(folder, 1).write([{"step": step, "step_seconds": 0.01} for step in range(1, 8)])
    write_report(folder, report(2.0, beat(0, 8, since=2.0)))
    detector.look(2.0)
    assert detector.progress.stepped
    assert detector.progress.limit == 4.0


def test_lines_of_metrics_are_progress_without_any_watcher() -> None:
    progress = Progress(SETTINGS, ["a"])
    for now in range(0, 4000, 2):
        progress.observe(now, [], now // 250)
        assert not progress.overdue
    for now in range(4000, 4400, 2):
        progress.observe(now, [], 16)
    assert progress.overdue


def test_a_watching_process_that_stood_still_has_seen_nothing() -> None:
    run = Run(Progress(SETTINGS, ["a"]))
    run.live(100, ("step", 1.0))
    run.now += 10 * 3600  # the lid of a laptop
    run.see(*run.last)
    assert not run.progress.overdue
    assert run.progress.quiet <= LONGEST_LOOK + 2


def test_a_clock_that_is_set_back_does_no_harm() -> None:
    run = Run(Progress(SETTINGS, ["a"]))
    last = run.live(100, ("step", 1.0))
    run.now -= 3600
    run.see(beat(0, last, "step", 0.0))
    assert 0 <= run.progress.quiet < 10
    assert 55 < run.stand(last) < 75


def test_a_node_without_word_is_silent() -> None:
    progress, now = Progress(SETTINGS, ["a", "b", "c"]), 0.0
    while now <= SILENT_SECONDS + 2:
        progress.observe(now, [report(now, node="a"), report(1.0, node="b")])
        now += 2
    assert progress.silent() == ["b"]
    while now <= SILENT_AT_START + 2:
        progress.observe(now, [report(now, node="a"), report(now, node="b")])
        now += 2
    assert progress.silent() == ["c"]


# Naming ----------------------------------------------------------------------------------------------

LOOP = Frame("train/loop.py", 69, "run")
WAITS: Stack = (
    Frame("torch/distributed/distributed_c10d.py", 3252, "all_reduce"),
    Frame("torch/distributed/c10d_logger.py", 83, "wrapper"),
    Frame("train/distributed.py", 50, "sum"),
    LOOP,
)
READS: Stack = (
    Frame("threading.py", 331, "wait"),
    Frame("data/tokens/batch.py", 88, "read"),
    LOOP,
)
BACKWARD: Stack = (Frame("torch/autograd/graph.py", 829, "_engine_run_backward"), LOOP)


def seen(rank: int, stack: Stack = WAITS, step: int = 812, why: str = "py-spy", phase: str = "step") -> Seen:
    node = f"node{rank // 2 + 1}"
    return Seen(rank=rank, node=node, beat=beat(rank, step, phase), stack=stack, why=why)


def named(*ranks: Seen) -> tuple[list[int], str]:
    odd = odd_ones(ranks)
    return [one.rank for one in odd], describe(ranks, odd, 312.4)


def test_the_one_outside_the_collective_is_named() -> None:
    ranks = [seen(rank) for rank in range(8)]
    ranks[3] = seen(3, READS, step=811)
    assert named(*ranks) == (
        [3],
        "7 ranks wait in all_reduce (step 812), "
        "rank 3 on node2 is in data/tokens/batch.py:88 (step 811) for 312 s",
    )


@pytest.mark.parametrize(
    ("ranks", "odd", "words"),
    [
        ([seen(0), seen(1, READS)], [1], "rank 1 on node1 is in data/tokens/batch.py:88"),
        ([seen(0), seen(1, READS), seen(2), seen(3, (), why=GONE)], [3], f"rank 3 on node2: {GONE}"),
        ([seen(0, BACKWARD), seen(1, BACKWARD), seen(2, BACKWARD, step=811)], [2], "rank 2 on node2 is in"),
        ([seen(0, BACKWARD), seen(1, READS), seen(2, BACKWARD)], [1], "rank 1 on node1"),
        ([seen(0), seen(1), seen(2), seen(3, WAITS[:3])], [3], "rank 3 on node2 waits in all_reduce"),
        ([seen(0, READS), seen(1, READS), seen(2), seen(3)], [0, 1], "ranks 0, 1 on node1 are in"),
        # One that went ahead: most are not in a collective, and it is not they who are odd.
        ([seen(0), seen(1, READS), seen(2, READS), seen(3, READS)], [0], "rank 0 on node1 waits"),
        ([seen(0), seen(1), seen(2)], [], "3 ranks wait in all_reduce (step 812) for"),
        ([seen(0, BACKWARD), seen(1, READS)], [], "rank 0 on node1 is in"),
        ([seen(0, step=0, phase="model"), seen(1, READS, 0, phase="data")], [1], "batch.py:88 (data) for"),
    ],
)
def test_whoever_is_odd_is_named(ranks: list[Seen], odd: list[int], words: str) -> None:
    found, text = named(*ranks)
    assert found == odd
    assert words in text
    assert "\n" not in text


@given(st.lists(st.sampled_from([WAITS, READS, BACKWARD, ()]), min_size=1, max_size=9), st.data())
def test_never_more_than_half_are_odd(stacks: list[Stack], data: st.DataObject) -> None:
    ranks = [
        seen(rank, stack, step=data.draw(st.sampled_from([811, 812]))) for rank, stack in enumerate(stacks)
    ]
    odd = odd_ones(ranks)
    assert 2 * len(odd) <= len(ranks)
    assert describe(ranks, odd, 1.0)
    unseen = [one for one in ranks if one.stack == ()]
    if 0 < 2 * len(unseen) <= len(ranks):
        assert odd == unseen


def test_collectives_are_known_by_their_innermost_calls() -> None:
    assert collective(WAITS) == "all_reduce"
    assert (
        collective((Frame("deepspeed/comm/torch.py", 5, "all_gather_into_tensor"),))
        == "all_gather_into_tensor"
    )
    assert collective(READS) is None
    assert collective(()) is None
    assert collective((Frame("threading.py", 1, "wait"), *WAITS)) is None


# The detector ----------------------------------------------------------------------------------------


def quick(seconds: float = 4.0) -> Supervision:
    return Supervision(hang_seconds=seconds, hang_factor=2.0, start_minutes=1.0)


def test_stacks_are_asked_for_and_not_waited_for_for_ever(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    detector = HangDetector(folder, quick(), 1, ["a", "b"], Reports(folder, 1))

    def look(now: float, step: int) -> list[str]:
        for node, rank in (("a", 0), ("b", 1)):
            write_report(folder, report(now, beat(rank, step, since=float(step)), node=node))
        return [finding.text for finding in detector.look(now)]

    for now in range(10):
        assert look(now, now + 1) == []
    now = 10
    while not list(requests(folder, 1)):
        assert look(now, 10) == []
        now += 1
    assert 12 <= now <= 17
    look(now, 11)  # it went on after all
    now += 2
    look(now, 11)
    while len(list(requests(folder, 1))) < 2:
        assert look(now, 11) == []
        now += 1
    place = stacks_folder(folder, 1, 2)
    place.mkdir(parents=True)
    rank_file(place, 0).write_text('Thread 0x1 (most recent call first):\n  File "/x.py", line 3 in f\n')
    (place / "a.json").write_text('{"0": "signal"}')
    assert look(now, 11) == []  # node b has not answered
    found: list[str] = []
    for later in range(now + 1, now + 40):
        found += look(later, 11)
    assert len(found) == 1
    assert found[0].startswith(
        "hang: rank 0 on a is in /x.py:3 (step 11), rank 1 on b: could not be looked at"
    )


def test_a_silent_node_is_told_once_and_is_the_odd_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    detector = HangDetector(folder, quick(100.0), 1, ["a", "b"], Reports(folder, 1))
    findings = []
    for now in range(0, 400, 2):
        step = min(now + 1, 20)
        at = float(step)
        write_report(folder, report(now, beat(0, step, since=at), node="a"))
        if now < 20:
            write_report(folder, report(now, beat(1, step, since=at), node="b"))
        for number in requests(folder, 1):
            place = stacks_folder(folder, 1, number)
            place.mkdir(parents=True, exist_ok=True)
            frames = '  File "/l/site-packages/torch/distributed/distributed_c10d.py", line 1 in all_reduce\n'
            rank_file(place, 0).write_text(f"Thread 0x1 (most recent call first):\n{frames}")
            (place / "a.json").write_text('{"0": "signal"}')
        findings += detector.look(now)
    assert [finding.kind for finding in findings] == ["silent", "hang"]
    silent, hang = findings
    assert (silent.node, silent.fatal) == ("b", False)
    assert (hang.node, hang.fatal) == ("b", True)
    assert hang.facts["ranks"] == [1]
    assert "rank 0 on a waits in all_reduce (step 20), rank 1 on b: its node is silent" in hang.text


def test_a_run_of_which_nothing_is_heard_hangs_after_the_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    detector, found = HangDetector(folder, quick(), 1, ["a"], Reports(folder, 1)), []
    for now in range(200):
        found += detector.look(now)
    assert [finding.text for finding in found] == [
        "hang: no step in the 1 minutes since the start: no rank has ever reported"
    ]


def test_earlier_attempts_say_what_a_step_takes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    assert usual_step(folder) is None
    MetricsWriter(folder, 1).write([{"step": step, "step_seconds": 0.5 * step} for step in (1, 2, 3)])
    assert usual_step(folder) == 1.0
    folder.metrics.write_text("broken\n")
    assert usual_step(folder) is None


# Real processes --------------------------------------------------------------------------------------

WORKER = """
import sys, time
from pathlib import Path
import torch
from torch import distributed as dist
from record.folder import RunFolder
from train.heartbeat import Pulse

def user_code_that_sleeps():
    time.sleep(600)

pulse = Pulse(RunFolder(Path(sys.argv[1])))
dist.init_process_group("gloo")
for step in range(1, 10**6):
    pulse.step(step)
    dist.all_reduce(torch.ones(1))
    pulse.met()
    time.sleep(0.1)
    if dist.get_rank() == 1 and step == 20:
        user_code_that_sleeps()
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[RunFolder]:
    """Two ranks with their watcher; at step 20 one of them sleeps."""
    from support.runs import freeze, tiny

    folder, port, processes = freeze(tiny(tmp_path)), free_port(), []
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        watcher = [sys.executable, "-P", "-m", "launch.supervise.node", str(folder.path), "1"]
        processes.append(subprocess.Popen(watcher, env=quiet))
        for rank in (0, 1):
            command = [sys.executable, "-c", WORKER, str(folder.path)]
            processes.append(subprocess.Popen(command, env=quiet | worker_env(rank, 2, port)))
        yield folder
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(beats_folder(folder), ignore_errors=True)


@pytest.mark.slow
def test_a_rank_that_sleeps_in_user_code_is_named_with_its_line(sleeper: RunFolder) -> None:
    detector = HangDetector(sleeper, quick(5.0), 1, [node_name()], Reports(sleeper, 1))
    findings, began, stood = [], time.monotonic(), None
    while not findings and time.monotonic() - began < 60:
        findings = [*detector.look(time.time())]
        beats = Reports(sleeper, 1).newest(0.0)
        if stood is None and beats and beats[0].beats and beats[0].beats[0].step == 21:
            stood = time.monotonic()
        time.sleep(0.2)
    (hang,) = findings
    line = 1 + next(number for number, text in enumerate(WORKER.splitlines()) if "time.sleep(600)" in text)
    assert hang.facts["ranks"] == [1]
    assert hang.facts["rank"] == 1
    assert hang.node == node_name()
    assert f"rank 0 on {node_name()} waits in all_reduce (step 21), rank 1 on" in hang.text
    assert f"<string>:{line} (step 20)" in hang.text
    assert hang.facts["stack"][0] == f"<string>:{line} user_code_that_sleeps"
    assert (sleeper.path / hang.facts["stacks"] / "rank-00001.txt").exists()
    assert stood is not None
    assert time.monotonic() - stood < 2 * 5.0
