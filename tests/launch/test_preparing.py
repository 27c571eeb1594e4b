from __future__ import annotations

import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from launch.screens import preparing as screen
from launch.screens.preparing import BarReport, bars_on, preparing, told


def test_how_far_it_is() -> None:
    mib = 2.0**20
    assert told(3 * mib, 8 * mib, "bytes", 1.5 * mib, 4.2) == "3.0 MiB of 8.0 MiB · 1.5 MiB/s · 4 s left"
    assert told(8 * mib, 8 * mib, "bytes", 1.5 * mib, 0) == "8.0 MiB · 1.5 MiB/s"
    assert told(0, 8 * mib, "bytes", None, None) == "0 B of 8.0 MiB"
    assert told(7, 9, "shards", 1.0, 2.0) == "7 of 9 shards"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = 100.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(screen, "time", type("clock", (), {"monotonic": lambda: now}))
    return pass_by


def test_a_pipe_gets_a_line_every_ten_seconds_and_one_at_the_end(clock: Callable[[float], None]) -> None:
    said = io.StringIO()
    with preparing(Console(file=said, width=200)) as report:
        report("quick", 0, 10, "bytes")
        clock(0.5)
        report("quick", 10, 10, "bytes")
        for second in range(26):
            report("slow", 40 + second, 65, "bytes")
            clock(1)
        report("slow", 65, 65, "bytes")
    assert said.getvalue().splitlines() == [
        "slow: 50 B of 65 B · 1 B/s · 15 s left",
        "slow: 60 B of 65 B · 1 B/s · 5 s left",
        "slow: 65 B · 1 B/s",
    ]


def test_a_terminal_gets_bars_that_go_when_it_is_done() -> None:
    said = io.StringIO()
    with preparing(Console(file=said, force_terminal=True, width=100)) as report:
        report("code", 2**20, 4 * 2**20, "bytes")
        time.sleep(0.01)
        report("code", 2 * 2**20, 4 * 2**20, "bytes")
    assert "code" in said.getvalue()
    assert "2.0 MiB of 4.0 MiB" in said.getvalue()
    assert "50%" in said.getvalue()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_bar_stays_on_one_line(width: int) -> None:
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=width)
    bars = BarReport(bars_on(console))
    bars("code", 0, 400 * 2**20, "bytes")
    (task,) = bars.bars.tasks
    task.finished_speed = 123.4 * 2**20
    bars("code", 129.1 * 2**20, 400 * 2**20, "bytes")
    console.print(bars.bars.get_renderable())
    (line,) = said.getvalue().splitlines()
    assert "129.1 MiB of 400.0 MiB · 123.4 MiB/s" in line


def test_ctrl_c_says_that_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), preparing():
        raise KeyboardInterrupt
    assert "goes on from there" in capsys.readouterr().err
