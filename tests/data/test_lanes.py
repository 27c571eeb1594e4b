from __future__ import annotations

import itertools
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import UmbelError
from data.document import Document
from data.order.document_order import DocumentOrder
from data.order.global_order import GlobalOrder
from data.streaming import lanes as lanes_module
from data.streaming.lanes import Cursors, LaneReader, RowMaker, StreamedSource
from data.tokens.encode import Example

LANES = 12
ORDER = GlobalOrder(
    [(0, {"a": 0.6, "b": 0.3, "c": 0.1}), (300, {"a": 0.2, "b": 0.8})], [[120, 144]], LANES, seed=5
)
COUNTS = {"a": 150, "b": 70, "c": 7}
LAST = 500


class Documents:
    """Documents without text: a fifth of them is left out."""

    def __init__(self, source: int) -> None:
        self.source = source

    def get(self, number: int) -> Document | None:
        if (number * 7 + self.source) % 5 == 0:
            return None
        return Document("here", f"{self.source} {number}", None, number)


class Maker(RowMaker):
    """Tokens that say which document and which place in it they are of."""

    def encode(self, document: Document | None) -> Example | None:
        if document is None:
            return None
        source, number = map(int, document.text.split())
        length = random.Random(document.text).randint(1, 60)
        ids = np.arange(length, dtype=np.int32) + source * 10**6 + number * 100
        return Example(ids, None, number)


def sources(max_epochs: float | None = None) -> dict[str, StreamedSource]:
    return {
        name: StreamedSource(
            Documents(index), DocumentOrder(count, 40, name), max_epochs, f"data.sources.{name}"
        )
        for index, (name, count) in enumerate(COUNTS.items())
    }


def reader(lanes: Any, start: int = 0, cursors: Cursors | None = None, **options: Any) -> LaneReader:
    maker = Maker(None, 16, options.pop("packing", True), 0.0)  # type: ignore[arg-type]
    return LaneReader(ORDER, sources(**options), maker, list(lanes), start, cursors)


def read(of: LaneReader, sequences: range, lanes: Any = range(LANES)) -> dict[int, Any]:
    """The rows of those sequences that fall on some lanes."""
    found = {}
    for sequence in sequences:
        number = ORDER.number(sequence)
        if number % LANES in lanes:
            [(source, row)] = of.read(np.array([number]))
            found[sequence] = (source, row.ids.tolist(), row.doc_lens.tolist(), row.doc_ids.tolist())
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "single"])
def packing(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@settings(deadline=None)
@given(cuts=st.sets(st.integers(1, LAST - 1), min_size=1, max_size=4), worlds=st.data())
def test_any_deal_of_lanes_and_any_cut_give_the_same_rows(
    packing: bool, cuts: set[int], worlds: st.DataObject
) -> None:
    whole = read(reader(range(LANES), packing=packing), range(LAST))
    cursors = np.zeros((LANES, 3, 2), np.int64)
    points = [0, *sorted(cuts), LAST]
    for first, last in itertools.pairwise(points):
        world = worlds.draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
        start = ORDER.number(first - 1) + 1 if first else 0
        after = np.zeros_like(cursors)
        for rank in range(world):
            mine = [lane for lane in range(LANES) if lane % world == rank]
            of = reader(mine, start, cursors, packing=packing)
            for sequence, row in read(of, range(first, last), mine).items():
                assert row == whole[sequence]
            of.pass_to(ORDER.number(last - 1) + 1)
            after += of.cursors
        cursors = np.array(json.loads(json.dumps(after.tolist())))


def test_rows_share_one_token_with_the_next_and_lose_none() -> None:
    order = GlobalOrder([(0, {"a": 1.0})], [], 1, 5)
    of = LaneReader(order, {"a": sources()["a"]}, Maker(None, 16, True, 0.0), [0])  # type: ignore[arg-type]
    rows = [row for _, row in of.read(np.arange(400))]
    assert all(before.ids[-1] == after.ids[0] for before, after in itertools.pairwise(rows))
    assert all(len(row.ids) == 17 == row.doc_lens.sum() for row in rows)
    assert all(len(row.doc_ids) == len(row.doc_lens) for row in rows)
    stream = np.concatenate([rows[0].ids, *(row.ids[1:] for row in rows[1:])])
    documents = np.split(stream, np.flatnonzero(stream % 100 == 0)[1:])
    for document in documents[:-1]:
        length = random.Random(f"0 {document[0] // 100}").randint(1, 60)
        assert np.array_equal(document, document[0] + np.arange(length))
    epoch = [int(document[0]) // 100 for document in documents[: 150 * 4 // 5]]
    assert sorted(epoch) == [number for number in range(150) if number * 7 % 5]


def test_reading_back_is_refused() -> None:
    of = reader(range(LANES))
    of.read(np.array([LANES]))
    with pytest.raises(ValueError, match="is read already"):
        of.read(np.array([0]))


def test_a_source_is_read_no_more_often_than_it_may() -> None:
    of = reader(range(LANES), max_epochs=2.0)
    with pytest.raises(
        UmbelError, match=r"data\.sources\.\w: is used up: read \d\.\d+ times, and max_epochs is 2"
    ):
        read(of, range(5000))


def test_a_source_with_nothing_in_it_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Documents, "get", lambda self, number: None)
    monkeypatch.setattr(lanes_module, "MOST_IN_VAIN", 500)
    with pytest.raises(UmbelError, match="gave nothing to learn in 500 documents running"):
        reader([0]).read(np.array([0]))


def test_a_cursor_beyond_its_document_is_refused() -> None:
    """Other tokens than before: the tokenizer, or the document, is another."""
    of = reader([0])
    [(source, _)] = of.read(np.array([0]))
    of.cursors[0, sorted(COUNTS).index(source)] = 1, 99
    with pytest.raises(UmbelError, match=rf"data\.sources\.{source}: .*document \d+ has \d+ tokens.* 99"):
        next_row(reader([0], LANES, of.cursors), source)


def next_row(of: LaneReader, source: str) -> None:
    """Read on until a row of that source came."""
    for number in itertools.count(LANES, LANES):
        if of.read(np.array([number]))[0][0] == source:
            return
