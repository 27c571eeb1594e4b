from __future__ import annotations

from pathlib import Path

import pytest

from record.folder import RunFolder
from record.rank_logs import last_lines, node_of, rank_logs, take_log


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.delenv("SLURM_STEP_NUM_NODES", raising=False)
    made = RunFolder(tmp_path / "run").create()
    made.rank_log(2, 0).parent.mkdir()
    return made


def test_on_one_node_a_log_is_named_by_its_rank(folder: RunFolder) -> None:
    assert take_log(folder, 2, 3) == folder.rank_log(2, 3)


def test_on_several_the_log_that_srun_began_gets_the_nodes_name(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    monkeypatch.setenv("SLURMD_NODENAME", "node2")
    folder.rank_log(2, 3).write_text("before the rank knew itself\n")
    log = take_log(folder, 2, 3)
    assert (log.name, log.read_text()) == ("rank-00003.node2.log", "before the rank knew itself\n")
    folder.rank_log(2, 3).write_text("another try of the same attempt\n")
    assert take_log(folder, 2, 3).read_text() == "before the rank knew itself\n", "nothing is lost"


def test_logs_are_found_by_rank_whatever_their_node(folder: RunFolder) -> None:
    place = folder.rank_log(2, 0).parent
    for name in ("rank-00010.node2.log", "rank-00000.node1.example.org.log", "rank-00002.log", "notes.log"):
        (place / name).write_text(f"{name}\n")
    assert list(rank_logs(folder, 2)) == [0, 2, 10]
    assert last_lines(folder, 2, 10, 5) == "rank-00010.node2.log"
    assert rank_logs(folder, 3) == {}
    nodes = [node_of(folder, 2, rank) for rank in (0, 2, 10, 11)]
    assert nodes == ["node1.example.org", None, "node2", None]


def test_the_last_lines_of_a_long_log(folder: RunFolder) -> None:
    folder.rank_log(2, 0).write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert last_lines(folder, 2, 0, 2) == "line 9998\nline 9999"
    assert last_lines(folder, 2, 1, 2) == ""
