"""The nodes' earlier figures: added, bounded, and done without where they are broken."""

from __future__ import annotations

from pathlib import Path

from launch.nodes.reference import KEPT, History, history_of, usual
from record.folder import RunFolder


def line(rate: float, **more: object) -> dict[str, object]:
    return {"device": "H100", "rates": [rate + 1, rate], "bandwidth": 2 * rate, "size": 4, **more}


def test_what_a_node_did_is_remembered_for_all_runs_beside_it(tmp_path: Path) -> None:
    history = history_of(RunFolder(tmp_path / "runs" / "a"))
    for rate in (5.0, 6.0):
        history.remember("node1", line(rate))
    history.remember("node1", line(7.0, device="A100", bandwidth=None))
    other = history_of(RunFolder(tmp_path / "runs" / "b"))
    assert other.rates("node1", "H100") == [5.0, 6.0]
    assert other.bandwidths("node1", "H100", 4) == [10.0, 12.0]
    assert other.bandwidths("node1", "H100", 8) == []
    assert other.rates("node2", "H100") == []


def test_a_file_stays_small_and_keeps_the_newest(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number in range(3 * KEPT):
        history.remember("n", line(float(number)))
    kept = history.rates("n", "H100")
    assert KEPT <= len(kept) <= 2 * KEPT
    assert kept == [float(number) for number in range(3 * KEPT - len(kept), 3 * KEPT)]


def test_a_broken_or_unwritable_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "n.jsonl").write_text("nonsense\n")
    (tmp_path / "m.jsonl").mkdir()
    history = History(tmp_path)
    history.remember("m", line(1.0))
    assert (history.rates("n", "H100"), history.rates("m", "H100")) == ([], [])


def test_two_starts_are_no_measure() -> None:
    assert usual([1.0, 2.0]) is None
    assert usual([1.0, 9.0, 2.0]) == 2.0
