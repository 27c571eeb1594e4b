from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from configs.typed import build


@dataclass
class Leaf:
    size: int
    rate: float = 0.5


@dataclass
class Tree:
    leaf: Leaf
    name: str = "oak"
    stage: Literal[0, 1, 2] = 0
    width: int | Literal["auto"] = "auto"
    spare: Leaf | None = None
    rates: list[float] = field(default_factory=list)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    tall: bool = False


def refusal(value: Any) -> str:
    with pytest.raises(UmbelError) as caught:
        build(Tree, value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_value_becomes_nested_dataclasses() -> None:
    value = {"leaf": {"size": 3}, "leaves": {"a": {"size": 1, "rate": 2}}, "width": 4, "rates": [1, "2e-5"]}
    tree = build(Tree, value)
    assert tree == Tree(leaf=Leaf(3), leaves={"a": Leaf(1, 2.0)}, width=4, rates=[1.0, 2e-5])
    assert isinstance(tree.leaves["a"].rate, float)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"leaf": {"szie": 3}}, "leaf.szie: no such key; did you mean 'size'?"),
        ({"leaf": {}}, "leaf.size: must be given; set leaf.size=… on the command line"),
        ({"leaf": 3}, "leaf: must be a group of keys, not 3"),
        ({"leaf": {"size": 3.0}}, "leaf.size: must be a whole number, not 3.0; for example leaf.size=8"),
        ({"leaf": {"size": True}}, "leaf.size: must be a whole number, not True; for example leaf.size=8"),
        (
            {"leaf": {"size": 1, "rate": True}},
            "leaf.rate: must be a number, not True; for example leaf.rate=0.1",
        ),
        (
            {"leaf": {"size": 1, "rate": "fast"}},
            "leaf.rate: must be a number, not 'fast'; for example leaf.rate=0.1",
        ),
        (
            {"leaves": {"a": {"size": "x"}}},
            "leaves.a.size: must be a whole number, not 'x'; for example leaves.a.size=8",
        ),
        ({"leaves": [1]}, "leaves: must be a group of keys, not [1]"),
        ({"rates": [1.0, None]}, "rates[1]: must be a number, not None"),
        ({"rates": 1.0}, "rates: must be a list, not 1.0"),
        ({"stage": 3}, "stage: must be one of 0, 1, 2, not 3"),
        ({"stage": True}, "stage: must be one of 0, 1, 2, not True"),
        ({"width": "wide"}, "width: must be a whole number or auto, not 'wide'"),
        ({"spare": {"size": "x"}}, "spare.size: must be a whole number, not 'x'; for example spare.size=8"),
        ({"spare": 1}, "spare: must be a group of keys, not 1"),
        ({"name": 7}, "name: must be text, not 7; quote it twice: name='\"7\"'"),
        ({"name": None}, "name: must be text, not None"),
        ({"tall": 1}, "tall: must be true or false, not 1; for example tall=true"),
        ({"nmae": "x"}, "nmae: no such key; did you mean 'name'?"),
        ({3: "x"}, "3: no such key; known: extra, leaf, leaves, name, rates, spare, stage, tall, width"),
    ],
)
def test_a_wrong_value_is_refused_by_its_full_path(change: dict[Any, Any], line: str) -> None:
    assert refusal({"leaf": {"size": 3}} | change) == line


def test_the_root_must_be_a_group_of_keys() -> None:
    assert refusal(None) == "config: must be a group of keys, not None"


LEAVES = st.builds(Leaf, size=st.integers(), rate=st.floats(allow_nan=False))
TREES = st.builds(
    Tree,
    leaf=LEAVES,
    name=st.text(),
    stage=st.sampled_from([0, 1, 2]),
    width=st.integers() | st.just("auto"),
    spare=st.none() | LEAVES,
    rates=st.lists(st.floats(allow_nan=False)),
    leaves=st.dictionaries(st.text(), LEAVES),
    extra=st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
    tall=st.booleans(),
)


@given(TREES)
def test_plain_data_and_back_is_the_same_tree(tree: Tree) -> None:
    assert build(Tree, asdict(tree)) == tree
