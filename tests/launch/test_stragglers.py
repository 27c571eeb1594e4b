"""A rank that is persistently slower than the others is named, with how it shows; noise names nobody."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.supervise.detect.reports import Reports
from launch.supervise.detect.stragglers import WINDOWS, Pace, StragglerDetector, pace, slower
from launch.supervise.finding import Finding
from record.events import record_event
from record.folder import RunFolder
from record.heartbeats import Beat, NodeReport, write_report

STEP = 2.0
PROBE = 0.001


def paces(*own: float, probes: Sequence[float] = ()) -> dict[int, Pace]:
    """Ranks that need ``own`` seconds to where they meet; the last one lets them all go on."""
    longest = max(own)
    return {
        rank: Pace(longest, longest - each, probes[rank] if probes else None) for rank, each in enumerate(own)
    }


def test_who_comes_late_is_slower_by_what_the_others_wait() -> None:
    found = slower(paces(1.0, 1.0, 1.1, 1.0))
    assert list(found) == [2]
    assert found[2].share == pytest.approx(0.1 / 1.1)
    assert found[2].why == "the others wait for it 9% of each step"


def test_a_slow_device_shows_in_work_that_needs_nobody() -> None:
    found = slower(paces(1.0, 1.0, 1.0, probes=[0.5, 0.5, 0.6]))
    assert list(found) == [2]
    assert found[2].share == pytest.approx(0.2)
    assert found[2].why == "its device takes 20% longer for the same work"


def test_alone_nobody_is_slow() -> None:
    assert slower(paces(1.0, probes=[0.5])) == {}


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=12), st.floats(0.01, 100))
def test_the_scale_of_time_does_not_matter(own: list[float], scale: float) -> None:
    one, other = slower(paces(*own)), slower(paces(*(each * scale for each in own)))
    assert {rank for rank, slow in one.items() if slow.share > 1e-6} == {
        rank for rank, slow in other.items() if slow.share > 1e-6
    }
    assert all(slow.share <= 1 for slow in one.values())


@given(st.integers(3, 16), st.floats(0.06, 3.0), st.data())
def test_one_slow_rank_among_equals_is_the_only_one(world: int, share: float, data: st.DataObject) -> None:
    slow = data.draw(st.integers(0, world - 1))
    own = [1.0 + share * (rank == slow) for rank in range(world)]
    assert [rank for rank, found in slower(paces(*own)).items() if found.share > 0.05] == [slow]


def test_a_pace_is_the_difference_of_two_beats() -> None:
    before = Beat(0, 1, 100, "step", 1000.0, 5.0, 0.5, 10)
    after = Beat(0, 1, 120, "step", 1050.0, 7.0, 0.7, 20)
    assert pace(before, after) == Pace(2.5, 0.1, pytest.approx(0.02))
    assert pace(before, after._replace(probes=11)).probe is None  # one hiccup is no measure


class Simulated:
    """Ranks on two nodes, whose reports come every ten seconds."""

    def __init__(self, tmp_path: Path, world: int = 4) -> None:
        self.folder = RunFolder(tmp_path).create()
        self.beats = [Beat(rank, 10 + rank, 0, "starting", 1000.0) for rank in range(world)]
        self.now, self.draw = 1000.0, random.Random(0)
        self.detector = self.watch()
        self.report()  # they start

    def watch(self, attempt: int = 1) -> StragglerDetector:
        return StragglerDetector(self.folder, attempt, 0.05, Reports(self.folder, attempt))

    def report(self) -> Sequence[Finding]:
        half = len(self.beats) // 2
        for node, beats in (("a", self.beats[:half]), ("b", self.beats[half:])):
            report = NodeReport(node=node, attempt=1, time=self.now, beats=beats, facts={})
            write_report(self.folder, report)
        return self.detector.look(self.now)

    def live(self, seconds: float, late: dict[int, float] | None = None, noise: float = 0.0) -> list[Finding]:
        found: list[Finding] = []
        for _ in range(int(seconds / 10)):
            steps = int(10 / STEP)
            own = [
                (late or {}).get(rank, 0.0) + self.draw.uniform(0, noise) for rank in range(len(self.beats))
            ]
            self.now += 10
            self.beats = [
                beat._replace(
                    step=beat.step + steps,
                    since=self.now,
                    waited=beat.waited + steps * (max(own) - own[beat.rank]),
                    worked=beat.worked + 5 * PROBE,
                    probes=beat.probes + 5,
                )
                for beat in self.beats
            ]
            self.beats = [beat._replace(phase="step") for beat in self.beats]
            found += self.report()
        for finding in found:
            record_event(self.folder, finding.kind, text=finding.text, node=finding.node, **finding.facts)
        return found


def test_a_persistent_straggler_is_named_once_with_its_node(tmp_path: Path) -> None:
    run = Simulated(tmp_path)
    (found,) = run.live(600, late={2: 0.3})
    assert (found.kind, found.node, found.fatal) == ("straggler", "b", False)
    assert found.facts == {"rank": 2, "share": 0.15, "attempt": 1}
    assert found.text == "rank 2 on b is 15% slower than the others: the others wait for it 15% of each step"
    run.detector = run.watch()  # the supervisor was killed, and looks again
    assert run.live(600, late={2: 0.3}) == []


def test_it_takes_some_windows_in_a_row(tmp_path: Path) -> None:
    run = Simulated(tmp_path)
    for _ in range(4):
        assert run.live(60 * (WINDOWS - 1), late={1: 0.3}) == []
        assert run.live(120) == []


@settings(max_examples=20, deadline=None)
@given(noise=st.floats(0, 0.1), world=st.integers(2, 6))
def test_noise_names_nobody(noise: float, world: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        assert Simulated(Path(folder), world).live(600, noise=noise) == []


def test_the_start_is_no_part_of_a_window(tmp_path: Path) -> None:
    run = Simulated(tmp_path)
    assert run.live(10 + 60 * WINDOWS - 10, late={2: 0.3}) == []
    assert len(run.live(10, late={2: 0.3})) == 1


def test_a_share_below_the_setting_is_no_news(tmp_path: Path) -> None:
    assert Simulated(tmp_path).live(600, late={2: 0.05 * STEP * 0.9}) == []


def test_a_new_process_begins_a_new_window(tmp_path: Path) -> None:
    run = Simulated(tmp_path)
    run.live(40)
    run.beats = [
        beat._replace(pid=beat.pid + 100, step=0, waited=0.0, worked=0.0, probes=0) for beat in run.beats
    ]
    assert run.live(120) == []
