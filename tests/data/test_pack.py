from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.encode import Example
from data.pack import Row, one_per_row, pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def numbered(lengths: list[int]) -> list[Example]:
    """Documents whose tokens count up over the whole stream; every third token is masked."""
    starts = np.cumsum([0, *lengths])
    spans = [np.arange(start, stop, dtype=np.int32) for start, stop in pairwise(starts)]
    return [Example(ids, ids % 3 != 0) for ids in spans]


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


def test_one_per_row_counts_what_it_cuts() -> None:
    learned = np.zeros(9, bool)
    learned[7] = True
    examples = [
        Example(np.arange(9, dtype=np.int32)),
        Example(np.arange(3, dtype=np.int32)),
        Example(np.arange(1, dtype=np.int32)),  # nothing to predict
        Example(np.arange(9, dtype=np.int32), learned),  # what is learned lies beyond the cut
    ]
    rows, cut_documents, cut_tokens, left_out = one_per_row(examples, 4)
    assert [row.ids.tolist() for row in rows] == [[0, 1, 2, 3, 4], [0, 1, 2]]
    assert (cut_documents, cut_tokens, left_out) == (2, 8, 2)
    assert isinstance(rows[0], Row)
