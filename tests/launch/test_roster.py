"""Which nodes a start gets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from base.errors import UmbelError
from configs.schema import RunConfig
from launch.nodes.run import Checked
from launch.supervise.roster import Roster
from record.events import read_events, record_event
from record.folder import RunFolder

SILENT: Any = SimpleNamespace(tell=lambda *_: None)


def roster(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, failing: dict[str, str]) -> Roster:
    def look(_place: Any, _config: Any, _folder: Any, nodes: list[str], _log: Path) -> Checked:
        return Checked([node for node in nodes if node not in failing], failing, 1.0)

    monkeypatch.setattr("launch.nodes.run.check_nodes", look)
    place = SimpleNamespace(nodes=lambda: ["a", "b", "c"])
    return Roster(folder, cast(Any, place), SILENT)


@pytest.fixture
def folder(tiny_config: RunConfig) -> RunFolder:
    tiny_config.cluster.nodes = 2
    return RunFolder.of(tiny_config).create()


def test_a_node_that_fails_the_look_is_replaced_and_excluded(
    folder: RunFolder, tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = roster(folder, monkeypatch, {"a": "a GPU is missing"})
    assert made.choose(tiny_config, folder.logs / "launch.log") == ["b", "c"]
    assert made.excluded(tiny_config) == ["a"]
    assert [(event["event"], event["node"]) for event in read_events(folder)] == [("blamed", "a")]


def test_too_few_are_told_by_name(
    folder: RunFolder, tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = roster(folder, monkeypatch, {"a": "a GPU is missing"})
    for _ in range(2):
        record_event(folder, "blamed", node="b", why="was killed")
    assert made.choose(tiny_config, folder.logs / "launch.log") is None
    assert made.enough(tiny_config), "what was unfit once may be fit the next time"
    assert "fewer than 2 nodes are fit: without a, b" in str(made.too_few(tiny_config))


def test_a_look_that_cannot_be_taken_keeps_no_run_from_its_work(
    folder: RunFolder, tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Checked:
        raise UmbelError("cannot be written")

    made = roster(folder, monkeypatch, {})
    monkeypatch.setattr("launch.nodes.run.check_nodes", refuse)
    assert made.choose(tiny_config, folder.logs / "launch.log") == ["a", "b"]
    assert "cannot be written" in read_events(folder)[-1]["text"]
