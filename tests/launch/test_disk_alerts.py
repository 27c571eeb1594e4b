"""A disk that fills is told at each share once, with what could go; and again only after it was emptied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.supervise.detect.disk import EASED, DiskDetector, could_go, reached, usage
from launch.supervise.detect.reports import Reports
from launch.supervise.machine import disk_facts
from record.events import read_events, record_event
from record.folder import RunFolder
from record.heartbeats import NodeReport, write_report
from support.small_disk import small_disk

SHARES = [0.75, 0.85]


def disk(used: float, inodes: float = 0.0, path: str = "/scratch") -> dict[str, Any]:
    facts = {"path": path, "bytes": 1000 * 2**30, "bytes_used": round(used * 1000) * 2**30}
    return facts | {"inodes": 1000, "inodes_used": round(inodes * 1000)}


class Watched:
    """A run's folder that fills; what is found becomes an event, as the supervisor makes it one."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.now = RunFolder(tmp_path).create(), 0.0
        self.restart()

    def restart(self) -> None:
        self.detector = DiskDetector(self.folder, SHARES, Reports(self.folder, 1))

    def see(self, *disks: dict[str, Any], node: str = "a") -> list[tuple[bool, str]]:
        """(whether somebody is told, text)."""
        facts = {"disks": {str(number): each for number, each in enumerate(disks)}}
        write_report(self.folder, NodeReport(node=node, attempt=1, time=self.now, beats=[], facts=facts))
        self.now += 10
        findings = self.detector.look(self.now)
        for finding in findings:
            assert not finding.fatal
            record_event(self.folder, finding.kind, text=finding.text, **finding.facts)
        return [(finding.alert, finding.text) for finding in findings]


def test_each_share_is_told_once(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    assert run.see(disk(0.70)) == []
    assert run.see(disk(0.76)) == [(True, "/scratch on a: 76% of its bytes are used, 240.0 GiB are free")]
    assert run.see(disk(0.80)) == []
    assert [alert for alert, _ in run.see(disk(0.90))] == [True]
    assert run.see(disk(0.99)) == []


def test_a_restart_is_no_news(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    assert run.see(disk(0.80))
    run.restart()
    assert run.see(disk(0.80)) == []
    assert run.see(disk(0.86))


def test_what_was_emptied_may_fill_again(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    run.see(disk(0.80))
    assert run.see(disk(0.75 - EASED / 2)) == []  # back and forth over a border is no news
    assert run.see(disk(0.76)) == []
    ((alert, text),) = run.see(disk(0.5))
    assert (alert, text) == (False, "/scratch on a: 50% of its bytes are used, 500.0 GiB are free")
    run.restart()
    assert [alert for alert, _ in run.see(disk(0.76))] == [True]
    levels = [event["level"] for event in read_events(run.folder)]
    assert levels == [0.75, 0.0, 0.75]


def test_inodes_and_quotas_count_too(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    ((_, text),) = run.see(disk(0.1, inodes=0.8))
    assert "80% of its inodes" in text
    quota = disk(0.1, path="/projects/shared") | {"quota": {"bytes": 0.95}}
    ((_, text),) = run.see(disk(0.1, inodes=0.8), quota)
    assert "/projects/shared on a: 95% of its quota of bytes" in text


def test_a_file_system_that_makes_inodes_as_needed_has_no_share_of_them() -> None:
    facts = {"disks": {"run": disk(0.3) | {"inodes": 0, "inodes_used": 0}}}
    report = NodeReport(node="a", attempt=1, time=0.0, beats=[], facts=facts)
    assert [of for _, of in usage([report])] == ["bytes"]


def test_the_fullest_node_counts(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    run.see(disk(0.1, path="/local"), node="a")
    ((_, text),) = run.see(disk(0.8, path="/local"), node="b")
    assert "/local on b: 80%" in text


@given(st.lists(st.floats(0, 1), max_size=30))
def test_levels_follow_use(uses: list[float]) -> None:
    level = 0.0
    for used in uses:
        level = reached(used, SHARES, level)
        assert level in (0.0, *SHARES)
        assert used >= level - EASED
        assert all(share <= level for share in SHARES if used >= share)


def test_what_could_go_is_named_oldest_first_but_never_the_newest(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    assert could_go(run.folder.checkpoints) == ""
    for name in ("step-00000100", "step-00000200", "step-00000300", "rolled-back-0001"):
        (run.folder.checkpoints / name).mkdir()
        (run.folder.checkpoints / name / "manifest.json").write_text("{}")
    ((_, text),) = run.see(disk(0.8))
    assert text.endswith("are free; could go: rolled-back-0001, step-00000100, step-00000200")


def test_a_real_file_system_that_fills_is_noticed(tmp_path: Path) -> None:
    run = Watched(tmp_path / "run")
    with small_disk(tmp_path / "small", "size=1m,nr_inodes=100") as small:
        assert run.see(disk_facts(small.path)) == []
        (small.path / "filler").write_bytes(b"x" * 900_000)
        ((alert, text),) = run.see(disk_facts(small.path))
        assert alert
        assert "of its bytes are used" in text
        for number in range(90):
            (small.path / str(number)).touch()
        ((alert, text),) = run.see(disk_facts(small.path))
        assert alert
        assert "of its inodes are used" in text


@pytest.mark.parametrize("facts", [{}, {"disks": {}}])
def test_without_facts_there_is_nothing_to_say(tmp_path: Path, facts: dict[str, Any]) -> None:
    run = Watched(tmp_path)
    write_report(run.folder, NodeReport(node="a", attempt=1, time=0.0, beats=[], facts=facts))
    assert run.detector.look(5.0) == []
