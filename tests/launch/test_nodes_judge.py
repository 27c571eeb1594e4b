"""Each fault of a node is told in one line, and a good node has none."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from launch.nodes.facts import Gpu, NodeFacts, from_json
from launch.nodes.judge import Limits, Looked, judge

GB = 1 << 30
GPU = Gpu(
    name="NVIDIA H100", uuid="GPU-1", memory=80 * GB, free=79 * GB, uncorrected=0, remap_pending=False,
    remap_failed=False, links=18, link_errors=0, temperature=40,
)  # fmt: skip
GOOD = NodeFacts(
    node="a", token="t", began=100.0, wrote=101.0, stage="done", memory=1000 * GB, memory_free=900 * GB,
    shm_free=500 * GB, disk={"tmp": 100 * GB}, kernel="6.1", driver="580", torch="2.13", code="code-1",
    port=True, gpus=[GPU] * 8, hub="", rates=[600.0] * 8, peaks=[989.0] * 8,
)  # fmt: skip
LIMITS = Limits(gpus=8, token="t")


def looked(**changes: Any) -> Looked:
    return Looked(replace(GOOD, **changes), asked=100.0, seen=101.5)


def among_good(**changes: Any) -> dict[str, str]:
    """The failing ones of four nodes, of which one is changed."""
    seen = {name: looked(node=name) for name in "abc"} | {"d": looked(node="d", **changes)}
    return judge(seen, LIMITS).words()


def gpu(**changes: Any) -> list[Gpu]:
    """Eight devices, the fourth of which is changed."""
    return [GPU] * 3 + [replace(GPU, **changes)] + [GPU] * 4


def test_good_nodes_pass_without_a_word() -> None:
    verdict = judge({name: looked(node=name) for name in "abc"}, LIMITS)
    assert (verdict.failing, verdict.notes) == ({}, {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus": [GPU] * 7}, "7 of 8 GPUs"),
        ({"lost": ["device 3: GPU is lost"], "gpus": [GPU] * 7}, "7 of 8 GPUs; device 3: GPU is lost"),
        ({"gpus": gpu(uncorrected=2)}, "device 3: 2 uncorrected memory errors (ECC)"),
        ({"gpus": gpu(remap_pending=True)}, "device 3: waits for a reset to replace a row of its memory"),
        ({"gpus": gpu(remap_failed=True)}, "device 3: a broken row of its memory could not be replaced"),
        ({"gpus": gpu(links=17)}, "device 3: 17 of 18 NVLinks are up"),
        ({"gpus": gpu(free=40 * GB)}, "device 3: 40.0 GiB of 80.0 GiB are taken by somebody else"),
        ({"token": ""}, "does not see what others write to the shared folder"),
        ({"began": 40.0}, "its clock is 60 s behind"),
        ({"wrote": 200.0}, "its clock is 98 s ahead"),
        ({"disk": {"tmp": 1 << 20}}, "/tmp has 1.0 MiB free"),
        ({"memory_free": 10 * GB}, "10.0 GiB of 1000.0 GiB memory are free"),
        ({"port": False}, "gives out no port to listen on"),
        ({"torch": "2.12"}, "torch 2.12, 2.13 elsewhere"),
        ({"torch": None}, "torch is missing, 2.13 elsewhere"),
        ({"code": "code-2"}, "sees other code (code-2) than code-1"),
        ({"stage": "matmul", "rates": []}, "hangs in matmul"),
        ({"rates": [600.0] * 7 + [300.0]}, "device 7: matmul at 50% of the other nodes' median"),
        ({"errors": ["device 1: matmul: out of memory"]}, "device 1: matmul: out of memory"),
        ({"hub": "timed out"}, "cannot reach the hub, which others can: timed out"),
    ],
)
def test_a_fault_is_told_in_one_line(changes: dict[str, Any], words: str) -> None:
    assert among_good(**changes) == {"d": words}


def test_a_node_that_became_slow_shows_by_its_own_past() -> None:
    past = [600.0] * 12
    verdict = judge({"a": looked(rates=[600.0] * 7 + [366.0])}, LIMITS, lambda _node, _device: past)
    assert verdict.words() == {"a": "device 7: matmul at 61% of its own median of 12 starts"}
    assert judge({"a": looked(rates=[600.0] * 7 + [366.0])}, LIMITS, lambda *_: past[:2]).words() == {}


def test_a_node_without_past_and_peers_is_held_to_its_makers_word() -> None:
    verdict = judge({"a": looked(rates=[600.0] * 7 + [100.0])}, LIMITS)
    assert verdict.words() == {"a": "device 7: matmul at 10% of what a NVIDIA H100 can do"}


def test_cores_may_be_slow_by_half() -> None:
    def nodes(slow: float) -> dict[str, Looked]:
        rates = {"a": 0.1, "b": 0.1, "c": slow}
        return {
            name: looked(node=name, gpus=[], rates=[rate], peaks=[], threads=1)
            for name, rate in rates.items()
        }

    assert judge(nodes(0.05), Limits(token="t")).words() == {}
    assert judge(nodes(0.02), Limits(token="t")).words() == {"c": "matmul at 20% of the other nodes' median"}


def test_what_is_so_everywhere_is_no_nodes_fault() -> None:
    seen = {name: looked(node=name, hub="timed out", stage="import of torch", rates=[]) for name in "abc"}
    verdict = judge(seen, LIMITS)
    assert verdict.words() == {}
    assert [note.split(" (")[0] for note in verdict.notes["b"]] == [
        "the hub does not answer", "no end of import of torch",
    ]  # fmt: skip


def test_heat_and_link_errors_are_worth_a_word() -> None:
    hot = gpu(slowed=["too hot"], temperature=91, link_errors=7)
    verdict = judge({"a": looked(gpus=hot)}, LIMITS)
    assert verdict.words() == {}
    assert verdict.notes == {"a": ["device 3: held down: too hot, 91 °C", "device 3: 7 NVLink errors"]}


def test_facts_travel_as_json() -> None:
    assert from_json(asdict(GOOD)) == GOOD
    with pytest.raises(TypeError):
        from_json({**asdict(GOOD), "more": 1})
