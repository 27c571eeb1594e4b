from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.rows.pack import Row, best_fit, learned, one_per_row, pack
from data.tokens.encode import Example

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def numbered(lengths: list[int]) -> list[Example]:
    """Documents whose tokens count up over the whole stream; every third token is masked."""
    starts = np.cumsum([0, *lengths])
    spans = [np.arange(start, stop, dtype=np.int32) for start, stop in pairwise(starts)]
    return [Example(ids, ids % 3 != 0, 7 * number) for number, ids in enumerate(spans)]


@given(LENGTHS, st.integers(2, 17), st.data())
def test_each_token_is_a_target_exactly_once(lengths: list[int], length: int, data: st.DataObject) -> None:
    examples = numbered(lengths)
    cut = data.draw(st.integers(0, len(examples)))
    first, carry = pack(None, examples[:cut], length)
    second, carry = pack(carry, examples[cut:], length)
    rows = first + second
    assert carry is not None
    targets = [token for row in rows for token in row.ids[1:].tolist()]
    left_out = carry.ids[1:].tolist()
    assert targets + left_out == list(range(1, sum(lengths)))
    assert len(left_out) < length
    assert all(len(row.ids) == length + 1 for row in rows)
    for row in [*rows, carry]:
        assert row.mask is not None
        assert row.mask.tolist() == (row.ids % 3 != 0).tolist()


@given(LENGTHS, st.integers(2, 17))
def test_doc_lens_mark_where_documents_end(lengths: list[int], length: int) -> None:
    rows, carry = pack(None, numbered(lengths), length)
    ends = set(np.cumsum(lengths).tolist())
    for row in [*rows, *([carry] if carry else [])]:
        inner = (row.ids[0] + np.cumsum(row.doc_lens)).tolist()
        assert inner[-1] == row.ids[-1] + 1
        assert set(inner[:-1]) == ends & set(range(row.ids[0] + 1, row.ids[-1] + 1))
        assert min(row.doc_lens) > 0


def test_nothing_packs_to_nothing() -> None:
    assert pack(None, [], 4) == ([], None)


@given(LENGTHS, st.integers(2, 17))
def test_rows_name_the_documents_of_their_parts(lengths: list[int], length: int) -> None:
    document_of = np.repeat(7 * np.arange(len(lengths)), lengths)
    rows, carry = pack(None, numbered(lengths), length)
    for row in [*rows, *([carry] if carry else []), *best_fit(numbered(lengths), length)]:
        assert np.repeat(row.doc_ids, row.doc_lens).tolist() == document_of[row.ids].tolist()
        assert len(row.doc_ids) == len(row.doc_lens)


@given(LENGTHS, st.integers(2, 17))
def test_best_fit_learns_every_token_of_a_text_but_its_first_once(lengths: list[int], length: int) -> None:
    texts = [Example(example.ids, None, example.document) for example in numbered(lengths)]
    rows = best_fit(texts, length)
    targets = [row.ids[learned(len(row.ids), row.doc_lens, row.mask)] for row in rows]
    starts = {0, *np.cumsum(lengths).tolist()}
    assert sorted(np.concatenate(targets).tolist()) == [n for n in range(sum(lengths)) if n not in starts]
    assert all(len(row.ids) <= length + 1 for row in rows)


@given(LENGTHS, st.integers(2, 17))
def test_best_fit_keeps_documents_whole_and_rows_full(lengths: list[int], length: int) -> None:
    rows = best_fit(numbered(lengths), length)
    parts = sorted(part for row in rows for part in row.doc_lens.tolist())
    assert parts == sorted(min(each, length + 1) for each in lengths)  # chats: what is too long is cut
    rooms = sorted(length + 1 - len(row.ids) for row in rows)
    smallest = [min(row.doc_lens) for row in rows]
    # Of two rows neither fits into the room of the other: best fit opens a row only when none has room.
    assert sum(2 * len(row.ids) <= length + 1 for row in rows) <= 1
    assert rooms[0] >= 0 and min(smallest) > 0
    firsts = [row.doc_ids[0] for row in rows]
    assert firsts == sorted(firsts)
    for row in rows:
        assert row.doc_ids.tolist() == sorted(row.doc_ids)


def test_best_fit_takes_the_fullest_row_that_has_room() -> None:
    examples = [Example(np.full(size, size, np.int32), None, size) for size in (6, 3, 7, 2)]
    # 7 and 6 open rows; 3 would fit with both, and goes with 7, which leaves room for 2 with 6.
    assert [row.doc_ids.tolist() for row in best_fit(examples, 9)] == [[6, 2], [3, 7]]


def test_one_per_row_cuts() -> None:
    examples = [
        Example(np.arange(9, dtype=np.int32), None, 5),
        Example(np.arange(3, dtype=np.int32), None, 6),
    ]
    rows = one_per_row(examples, 4)
    assert [row.ids.tolist() for row in rows] == [[0, 1, 2, 3, 4], [0, 1, 2]]
    assert [row.doc_ids.tolist() for row in rows] == [[5], [6]]


def test_the_first_token_of_a_document_is_no_target() -> None:
    lens, mask = np.array([2, 1, 3], np.int32), np.array([1, 1, 1, 1, 0, 1], bool)
    assert learned(6, lens, None).tolist() == [False, True, False, False, True, True]
    assert learned(6, lens, mask).tolist() == [False, True, False, False, False, True]
    ids = np.arange(3, dtype=np.int32)
    assert not Row(ids, None, np.array([1, 1, 1], np.int32), np.arange(3)).has_targets
    assert mask.all() == np.bool_(False) and mask[0]  # the row's own mask is as it was
