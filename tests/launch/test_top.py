from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from configs.compose import compose, save
from launch.lag import Lag, lags, slowest
from launch.screens.charts import bar, chart
from launch.screens.top import draw
from launch.status import RunStatus
from launch.top import Frame, NodeRow, Told, Top
from record.events import record_event
from record.folder import RunFolder
from record.heartbeats import Beat, NodeReport, write_report
from record.lock import RunLock
from record.metrics import MetricsWriter
from support.runs import TINY

ROOT = Path(__file__).resolve().parents[2]


def make(place: Path, name: str) -> RunFolder:
    folder = RunFolder(place / "runs" / name).create()
    save(compose([*TINY, f"run.name={name}", "schedule.steps=100"]), folder.run_yaml)
    record_event(folder, "job", id="7", nodes=["node1", "node2"], deadline=time.time() + 3500)
    record_event(folder, "start", attempt=1, step=0, world_size=4, zero_stage=1)
    facts = {"tokens": 64, "tokens_per_second": 100.0, "step_seconds": 1.0}
    MetricsWriter(folder, 1).write([{"step": step, "loss": 5 - step / 20, **facts} for step in range(1, 41)])
    return folder


def report(node: str, beats: list[Beat], ago: float = 0.0) -> NodeReport:
    facts = {"memory": 100, "memory_available": 25, "load": 3.0, "devices": [{"temperature": 71}]}
    return NodeReport(node=node, attempt=1, time=time.time() - ago, beats=beats, facts=facts)


def beat(rank: int, waited: float, step: int = 40) -> Beat:
    """Of an attempt that started now and makes a step a second."""
    return Beat(rank, 1, step, "step", time.time() + step, waited)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(frame: Frame, width: int, height: int, footer: bool = True) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, height=height).print(draw(frame, width, height, footer))
    return file.getvalue().splitlines()


def test_a_frame_tells_runs_nodes_and_events(place: Path) -> None:
    folder = make(place, "alpha")
    make(place, "beta")
    record_event(folder, "straggler", text="rank 3 on node2 is 20% slower", rank=3, node="node2", share=0.2)
    # The others wait 8 s in 40 steps for rank 3, which waits for nobody.
    write_report(folder, report("node1", [beat(0, 8.0), beat(1, 8.0)]))
    write_report(folder, report("node2", [beat(2, 8.0), beat(3, 0.0)]))
    with RunLock(folder):
        frame = Top().frame()
    assert [run.name for run in frame.runs] == ["alpha", "beta"]
    assert frame.runs[0].slowest == Lag(rank=3, node="node2", share=pytest.approx(0.2, abs=0.01))
    assert (len(frame.losses), frame.rates[-1]) == (40, 100.0)
    assert [(row.node, row.ranks, row.at, row.memory, row.temperature) for row in frame.nodes] == [
        ("node1", 2, "step 40", 0.75, 71),
        ("node2", 2, "step 40", 0.75, 71),
    ]
    shown = "\n".join(text(frame, 100, 30))
    for words in ("step 40/100", "slowest node2 +20 %", "walltime left 58m", "is 20% slower", "71 °C"):
        assert words in shown


def test_arrows_choose_a_run_that_keeps_its_place(place: Path) -> None:
    for name in ("a", "b", "c"):
        make(place, name)
    top = Top()
    assert top.frame().chosen == 0
    for by, expected in ((1, 1), (1, 2), (1, 2), (-1, 1)):
        top.choose(by)
        assert top.frame().chosen == expected
    with RunLock(RunFolder.find("c")):
        # Its state is read again after a while; it then stands first, and "b" is still the chosen one.
        fresh = Top()
        fresh._chosen = RunFolder.find("b")
        frame = fresh.frame()
    assert [run.name for run in frame.runs] == ["c", "a", "b"]
    assert frame.chosen == 2


def test_a_report_of_long_ago_tells_nothing_of_now(place: Path) -> None:
    folder = make(place, "alpha")
    write_report(folder, report("node1", [beat(0, 0.0)], ago=3600))
    with RunLock(folder):
        assert Top().frame().nodes == []


def test_of_ranks_that_fail_together_one_is_told(place: Path) -> None:
    folder = make(place, "alpha")
    for rank in (2, 0):
        record_event(folder, "failed", rank=rank, error="connection closed by peer")
    assert [told.text for told in Top().frame().events if told.level == "bad"] == [
        "failed: rank 2: connection closed by peer"
    ]
    record_event(folder, "failed", rank=1, node="node1", error="was killed by SIGKILL", verdict=True)
    assert [told.text for told in Top().frame().events if told.level == "bad"] == [
        "failed: rank 1 on node1: was killed by SIGKILL"
    ]


BEGAN = {"event": "start", "step": 0, "time": "2026-11-23T08:00:00+00:00"}


def later(rank: int, waited: float, step: int = 40) -> Beat:
    """After so many steps of a second each."""
    return beat(rank, waited, step)._replace(since=datetime.fromisoformat(BEGAN["time"]).timestamp() + step)


def test_a_lag_is_the_others_wait_as_a_share_of_a_step() -> None:
    ranks = [report("node1", [later(0, 8.0), later(1, 8.0)]), report("node2", [later(2, 2.0)])]
    assert slowest(lags(ranks, BEGAN)) == Lag(rank=2, node="node2", share=pytest.approx(0.15))


def test_noise_names_nobody() -> None:
    ranks = [report("node1", [later(0, 4.0), later(1, 4.3)]), report("node2", [later(2, 4.1)])]
    assert slowest(lags(ranks, BEGAN)) is None
    assert slowest(lags([], BEGAN)) is None and lags(ranks, {}) == {}
    assert slowest(lags([report("node1", [later(0, 2.0, step=2), later(1, 0.0, step=2)])], BEGAN)) is None


numbers = st.lists(st.floats(-1e6, 1e6), max_size=300)
rows = st.builds(
    NodeRow,
    node=st.sampled_from(["node1", "a-node-with-quite-a-long-name.example"]),
    ranks=st.integers(0, 16),
    at=st.just("step 12345"),
    lag=st.floats(0, 3),
    memory=st.none() | st.floats(0, 1),
    temperature=st.none() | st.floats(0, 120),
    load=st.none() | st.floats(0, 500),
    age=st.floats(0, 60),
)
runs = st.builds(
    RunStatus,
    name=st.sampled_from(["a", "a_run_of_a_name_that_is_far_too_long_for_any_table_to_hold_it_all"]),
    state=st.sampled_from(["running", "starting", "queued", "failed", "unreadable"]),
    step=st.integers(0, 10**7),
    steps=st.integers(0, 10**7),
    loss=st.none() | st.floats(0, 1e5),
    ended=st.none() | st.just("crashed: [red]rank 3[/] " + 20 * "word "),
    tokens_per_second=st.none() | st.floats(1, 1e9),
)


@given(
    st.lists(runs, max_size=12), st.data(), st.lists(rows, max_size=12), numbers,
    st.integers(40, 200), st.integers(12, 60), st.booleans(),
)  # fmt: skip
def test_a_frame_fits_its_terminal(
    listed: list[RunStatus], data: st.DataObject, nodes: list[NodeRow], values: list[float],
    width: int, height: int, footer: bool,
) -> None:  # fmt: skip
    told = [Told(time="2026-11-23T08:00:00+00:00", text="[bold] " + 30 * "word ", level="bad")] * 5
    chosen = data.draw(st.integers(0, max(0, len(listed) - 1)))
    frame = Frame(runs=listed, chosen=chosen, losses=values, rates=values, nodes=nodes, events=told)
    lines = text(frame, width, height, footer)
    assert len(lines) <= height
    assert max(map(len, lines), default=0) <= width
    if listed and footer:
        assert lines[-1].startswith("q leaves")


@given(numbers, st.integers(1, 120), st.integers(1, 6), st.none() | st.just(0.0))
def test_a_chart_has_its_size(values: list[float], width: int, height: int, low: float | None) -> None:
    lines = chart(values, width, height, low)
    assert [len(line) for line in lines] == [width] * height


def test_a_chart_rises_and_falls() -> None:
    assert chart([0, 1, 2, 3, 4, 5, 6, 7], 8) == ["▁▂▃▄▅▆▇█"]
    assert chart([7, 0], 4) == ["  █▁"]
    assert chart([15, 0], 2, 2) == ["█ ", "█▁"]
    assert chart([0, 0, 10, 10], 2) == ["▁█"]
    assert (bar(0.5, 6), bar(7, 2), bar(-1, 2)) == ("███░░░", "██", "░░")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}


COMMAND = [sys.executable, "-c", "import sys, umbel; sys.argv[1:] = ['top']; umbel.main()"]


def test_elsewhere_than_on_a_terminal_it_prints_one_frame(place: Path) -> None:
    make(place, "alpha")
    done = subprocess.run(COMMAND, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "alpha" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.fixture
def terminal(place: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    make(place, "alpha")
    make(place, "beta")
    master, slave = pty.openpty()
    process = subprocess.Popen(COMMAND, env=environment(), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    yield process, master
    process.kill()
    process.wait()
    os.close(master)


def read_until(master: int, wanted: bytes, seconds: float = 30) -> bytes:
    got, deadline = b"", time.monotonic() + seconds
    while wanted not in got:
        assert time.monotonic() < deadline, got
        if select.select([master], [], [], 0.1)[0]:
            try:
                got += os.read(master, 1 << 16)
            except OSError:
                break
    return got


@pytest.mark.parametrize("leave", ["q", "ctrl-c", "SIGTERM"])
def test_it_leaves_the_terminal_clean(terminal: tuple[subprocess.Popen[bytes], int], leave: str) -> None:
    process, master = terminal
    read_until(master, b"q leaves")
    os.write(master, b"\x1b[B")
    read_until(master, "▸ beta".encode())
    if leave == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    elif leave == "ctrl-c":
        process.send_signal(signal.SIGINT)
    else:
        os.write(master, b"q")
    # The other screen is left, and the cursor shows again.
    written = read_until(master, b"\x1b[?1049l", 10)
    if b"\x1b[?25h" not in written:
        read_until(master, b"\x1b[?25h", 10)
    assert process.wait(10) == 0


def test_status_and_top_agree(place: Path) -> None:
    folder = make(place, "alpha")
    from launch.status import status_of

    (run,) = Top([folder]).frame().runs
    assert replace(run, checkpoint_age=None) == replace(status_of(folder), checkpoint_age=None)
