"""Nodes look at themselves and meet: processes of this machine, each of which takes itself for a node."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest

from base.errors import UmbelError
from base.files import read_json, write_json
from launch.nodes import errand, machine, meetings, run
from launch.nodes.errand import Answers, Errand, Seen, why_silent
from launch.nodes.facts import from_json
from launch.nodes.meetings import Meetings, Met
from launch.nodes.probe import ASK, Ask
from launch.nodes.reference import History
from launch.nodes.run import Asked, check_nodes, survey
from launch.supervise.local_place import LocalPlace
from record.folder import RunFolder
from support.runs import freeze, tiny
from support.servers import Response, Server

NODES = ["a", "b", "c"]
NO_ROOM = "(ulimit -f 0; exec {}) | cat"
"""No file can grow; what is printed goes elsewhere, as it does through srun."""


class ManyNodes(LocalPlace):
    """This machine as several nodes: the command is started once for each.

    Args:
        instead: what a node does with its command, in shell.
    """

    def __init__(self, folder: Path, **instead: str) -> None:
        super().__init__(folder)
        self.instead = instead

    def start(
        self, command: Sequence[str], nodes: Sequence[str], log: Path, attempt: int
    ) -> subprocess.Popen[bytes]:
        do = {node: self.instead.get(node, "{}").format(shlex.join(command)) for node in nodes}
        each = [f"(export SLURMD_NODENAME={node}; {shell}) &" for node, shell in do.items()]
        return super().start(["bash", "-c", "\n".join(["trap 'kill 0' TERM", *each, "wait"])], nodes, log, 1)


def asked(place: ManyNodes, tmp_path: Path, compute: bool = False) -> Asked:
    from configs.schema import Cluster

    return Asked(
        place=place, cluster=Cluster(device="cpu", internet=False), run=RunFolder(tmp_path),
        folder=tmp_path / "answers", history=History(tmp_path / ".nodes"), compute=compute,
    )  # fmt: skip


# The probe ------------------------------------------------------------------------------------------------


def test_a_node_tells_what_it_is_and_does(tmp_path: Path) -> None:
    write_json(tmp_path / ASK, asdict(Ask(token="secret word", cpu=True)))
    before = time.time()
    answers = Errand(ManyNodes(tmp_path), 1).send(
        ["launch.nodes.probe", str(tmp_path), str(tmp_path)], ["a"], tmp_path, 60
    )
    facts = from_json(answers.found["a"].content)
    assert (facts.node, facts.token, facts.done, facts.errors) == ("a", "secret word", True, [])
    assert before <= facts.began <= facts.wrote <= answers.found["a"].when
    assert facts.torch == metadata.version("torch")
    assert facts.disk.keys() == {"tmp", "run"} and facts.memory > facts.memory_free > 0
    assert 0.001 < facts.rates[0] < 100


def test_each_node_that_gives_no_answer_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errand, "SLOW_SECONDS", 1.0)
    place = ManyNodes(tmp_path, b="false", c="sleep 60", d=NO_ROOM)
    began = time.monotonic()
    found = survey(asked(place, tmp_path), ["a", "b", "c", "d", "e", "f"])
    assert time.monotonic() - began < 15
    assert found.failing.keys() == {"b", "c", "d"}
    assert found.failing["c"].startswith("no answer in ")
    assert found.failing["d"].endswith("answers: File too large")
    assert found.facts.keys() == {"a", "e", "f"}
    assert not (tmp_path / "answers").exists()


def test_other_peoples_words_are_found(tmp_path: Path) -> None:
    lines = [
        "srun: error: Task launch for StepId=9.0 failed on node node3: Communication connection failure",
        "srun: error: node30: task 2: Killed",
        "srun: error: node4: task 3: Exited with exit code 1",
        "preflight: node4: /shared: Stale file handle",
        "srun: error: node4: task 3: Exited with exit code 1",
    ]
    assert why_silent("node3", lines) == (
        "Task launch for StepId=9.0 failed on node node3: Communication connection failure"
    )
    assert why_silent("node30", lines) == "task 2: Killed"
    assert why_silent("node4", lines) == "/shared: Stale file handle"
    assert why_silent("node5", lines) is None


def test_what_cannot_be_started_anywhere_is_no_nodes_fault(tmp_path: Path) -> None:
    class Refusing(ManyNodes):
        def start(
            self, command: Sequence[str], nodes: Sequence[str], log: Path, attempt: int
        ) -> subprocess.Popen[bytes]:
            shell = "echo 'srun: error: Unable to create step: Invalid account'; exit 1"
            return LocalPlace.start(self, ["bash", "-c", shell], nodes, log, attempt)

    found = survey(asked(Refusing(tmp_path), tmp_path), NODES)
    assert found.failing == {}
    assert "not looked at" in found.general[0]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("in the way")
    with pytest.raises(UmbelError, match="answers: cannot be written"):
        survey(asked(ManyNodes(tmp_path), tmp_path), NODES)


# The hub --------------------------------------------------------------------------------------------------


def test_a_hub_that_answers_is_reachable_whatever_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def refuse(request: object) -> Response:
        seen.append(request)
        return Response(status=401)

    with Server(refuse) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwx")
        assert machine.HubQuestion().answer() == ""
    (request,) = seen
    assert request.method == "HEAD" and "authorization" not in {name.lower() for name in request.headers}
    assert "refused" in machine.HubQuestion().answer()


# Meetings -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nodes_that_work_together_say_how_fast(tmp_path: Path) -> None:
    found = survey(asked(ManyNodes(tmp_path), tmp_path, compute=True), NODES)
    assert found.failing == {}
    assert found.bandwidth is not None and 0.001 < found.bandwidth < 100
    history = History(tmp_path / ".nodes")
    assert [history.bandwidths(node, "cpu, 1 thread", 3) for node in NODES] == [[found.bandwidth]] * 3
    assert [len(history.rates(node, "cpu, 1 thread")) for node in NODES] == [1] * 3


@pytest.mark.slow
def test_a_node_without_a_network_is_found_among_the_others(tmp_path: Path) -> None:
    place = ManyNodes(tmp_path, b="GLOO_SOCKET_IFNAME=nonet0 {}")
    met = Meetings(Errand(place, 1), tmp_path, dict.fromkeys(NODES, "127.0.0.1"), True, None).hold(NODES)
    assert met.failing.keys() == {"b"}
    assert "nonet0" in met.failing["b"]
    assert met.rate is None


class Scripted(Errand):
    """Nodes of which some cannot reach one another, or all do it at their own speed; nothing is started."""

    def __init__(self, bad: str = "", refused: bool = False, **speeds: float) -> None:
        self.bad, self.refused, self.speeds, self.rounds = bad, refused, speeds, 0

    def send(self, module: Sequence[str], nodes: Sequence[str], folder: Path, *_: object) -> Answers:
        self.rounds += 1
        found = {}
        for group in read_json(folder / "plan.json")["groups"] if not self.refused else []:
            broken = set(group) & set(self.bad)
            rate = min(self.speeds.get(node, 10.0) for node in group)
            for node in group:
                found[node] = Seen({"error": f"no way to {min(broken)}"} if broken else {"rate": rate}, 0.0)
        silent = {node: "no answer" for node in nodes if node not in found}
        return Answers(found, silent, [], self.refused)


def hold(nodes: str, tmp_path: Path, errand: Scripted, usual: float | None = None) -> Met:
    return Meetings(errand, tmp_path, dict.fromkeys(nodes, "127.0.0.1"), False, usual).hold(list(nodes))


def test_a_slow_node_is_found_where_the_usual_is_known(tmp_path: Path) -> None:
    met = hold("abcdefgh", tmp_path, Scripted(c=2.0), usual=10.0)
    assert met == ({"c": "all-reduce with the others: 2.00 GB/s, 10.00 are usual"}, None, [])
    nodes = "ABCDEFGH"
    (tmp_path / "again").mkdir()
    assert hold(nodes, tmp_path / "again", Scripted(C=6.0), usual=10.0) == ({}, 6.0, [])


def test_a_network_that_is_slow_everywhere_is_no_nodes_fault(tmp_path: Path) -> None:
    slow = dict.fromkeys("abcd", 2.0)
    assert hold("abcd", tmp_path, Scripted(**slow), usual=10.0) == ({}, None, [])


def test_of_two_nodes_that_cannot_meet_both_fail_and_of_more_none(tmp_path: Path) -> None:
    for name in ("two", "four", "refused"):
        (tmp_path / name).mkdir()
    words = "all-reduce with the others: no way to a"
    assert hold("ab", tmp_path / "two", Scripted(bad="a")).failing == {"a": words, "b": words}
    met = hold("abcd", tmp_path / "four", Scripted(bad="abc"))
    assert met == ({}, None, ["no two of the nodes were seen to all-reduce: no way to a"])
    refused = Scripted(refused=True)
    assert hold("ab", tmp_path / "refused", refused).failing == {}
    assert refused.rounds == 1


def test_a_search_ends_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meetings, "BUDGET_SECONDS", -1.0)
    errand = Scripted(bad="c")
    assert hold("abcd", tmp_path, errand).failing == {}
    assert errand.rounds == 1


# At each start --------------------------------------------------------------------------------------------


def test_on_this_machine_without_devices_nothing_is_asked(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    folder, began = freeze(config), time.monotonic()
    checked = check_nodes(LocalPlace(folder.path), config, folder, ["here"], folder.logs / "launch.log")
    assert checked == (["here"], {}, 0.0)
    assert time.monotonic() - began < 0.5
    assert list(folder.control.iterdir()) == []


def test_with_devices_only_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_is_worth_it", lambda *_: True)
    monkeypatch.setattr(errand, "SIGHT_SECONDS", 0.5)
    config = tiny(tmp_path)
    folder = freeze(config)
    log, left = folder.logs / "launch.log", folder.control / "preflight-of-a-killed-supervisor"
    left.mkdir()
    place = ManyNodes(folder.path, b=NO_ROOM)
    checked = check_nodes(place, config, folder, ["a", "b"], log)
    assert checked.passing == ["a"]
    assert checked.failing["b"].endswith("File too large")
    assert 0 < checked.seconds < 10
    assert "umbel: preflight: b fails: " in log.read_text()
    assert list(folder.control.iterdir()) == []
    config.supervision.preflight = False
    assert check_nodes(place, config, folder, ["a", "b"], log) == (["a", "b"], {}, 0.0)
