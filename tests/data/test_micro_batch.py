from __future__ import annotations

import numpy as np
import pytest

from data.micro_batch import IGNORED, MicroBatch, micro_batches
from data.rows.pack import Row


def row(ids: list[int], doc_lens: list[int], mask: list[bool] | None = None) -> Row:
    learned = None if mask is None else np.array(mask, bool)
    numbers = np.arange(len(doc_lens), dtype=np.int64)
    return Row(np.array(ids, np.int32), learned, np.array(doc_lens, np.int32), numbers)


def micro_batch(
    rows: list[Row], first: int, pad_id: int, longest: int, *, restart_positions: bool = False
) -> MicroBatch:
    parts = [range(first, first + len(rows))]
    [made] = micro_batches(rows, parts, pad_id, longest, restart_positions=restart_positions)
    return made


def test_rows_of_one_length_are_laid_out_at_once_as_one_by_one() -> None:
    rows = [row(list(range(n, n + 9)), [3, 2, 4]) for n in range(6)]
    parts = [range(10, 12), range(16, 19), range(24, 25)]
    many = micro_batches(rows, parts, 0, 8, restart_positions=True)
    alone = [micro_batch([rows[i]], 0, 0, 8, restart_positions=True) for i in range(6)]
    assert [made.first_slot for made in many] == [10, 16, 24]
    assert np.concatenate([made.labels for made in many]).tolist() == [m.labels[0].tolist() for m in alone]
    assert np.concatenate([made.input_ids for made in many]).tolist() == [
        m.input_ids[0].tolist() for m in alone
    ]
    assert [made.targets for made in many] == [2 * 6, 3 * 6, 6]


def test_labels_are_the_next_tokens_but_not_a_documents_first() -> None:
    made = micro_batch([row([1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 2, 4])], 5, 0, 8)
    assert made.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert made.labels.tolist() == [[2, 3, IGNORED, 5, IGNORED, 7, 8, 9]]
    assert (made.first_slot, made.targets, made.position_ids) == (5, 6, None)


def test_a_document_that_begins_with_the_last_token_is_a_target_nowhere() -> None:
    made = micro_batch([row([1, 2, 3, 4, 5, 6, 7, 8, 9], [8, 1])], 0, 0, 8)
    assert made.labels[0].tolist() == [2, 3, 4, 5, 6, 7, 8, IGNORED]


def test_short_rows_are_padded_and_padding_is_not_learned() -> None:
    made = micro_batch([row([1, 2, 3], [3]), row([1] * 11, [11])], 0, 99, 64)
    assert made.input_ids.shape == (2, 16)  # ten tokens, up to a multiple of eight
    assert made.input_ids[0].tolist() == [1, 2] + [99] * 14
    assert made.labels[0].tolist() == [2, 3] + [IGNORED] * 14
    assert made.targets == 2 + 10


def test_what_a_chats_mask_leaves_out_is_not_learned() -> None:
    made = micro_batch([row([1, 2, 3, 4], [4], [True, False, True, True])], 0, 0, 8)
    assert made.labels[0, :3].tolist() == [IGNORED, 3, 4]


@pytest.mark.parametrize(
    ("doc_lens", "expected"),
    [
        ([9], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([3, 2, 4], [0, 1, 2, 0, 1, 0, 1, 2]),
        ([8, 1], [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_positions_restart_with_each_document(doc_lens: list[int], expected: list[int]) -> None:
    made = micro_batch([row(list(range(9)), doc_lens)], 0, 0, 8, restart_positions=True)
    assert made.position_ids is not None
    assert made.position_ids.tolist() == [expected]
