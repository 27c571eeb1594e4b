from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from configs.batch import global_batch_at, sequences_at
from configs.schema import BatchRamp, Data, Schedule, Tokenizer
from data.inspect import batches, sequences
from data.order import GlobalOrder
from data.prepare import prepare
from data.prepared import Prepared
from data.stream import IGNORED, BatchStream, MicroBatch

WEIGHTS = {"small": 0.2, "middle": 0.3, "large": 0.5}
RAMP = Schedule(steps=50, global_batch=24, batch_ramp=BatchRamp(start=12, increment=6, sequences=90))


def splits(batch: int) -> list[tuple[int, int]]:
    """Every (world_size, micro_batch) that divides a batch."""
    return [
        (world, micro)
        for world in range(1, batch + 1)
        for micro in range(1, batch // world + 1)
        if batch % (world * micro) == 0
    ]


def gather(stream: BatchStream, step: int, world_size: int, micro_batch: int) -> list[MicroBatch]:
    return [
        batch
        for rank in range(world_size)
        for batch in stream.micro_batches(step, rank, world_size, micro_batch)
    ]


@given(st.integers(1, 40), st.data())
def test_any_world_size_and_micro_batch_give_the_same_rows_in_slot_order(
    mixture: Prepared, step: int, data: st.DataObject
) -> None:
    stream = BatchStream(mixture, RAMP, 7, WEIGHTS)
    batch = global_batch_at(RAMP, step)
    (reference,) = stream.micro_batches(step, 0, 1, batch)
    world_size, micro_batch = data.draw(st.sampled_from(splits(batch)))
    parts = gather(BatchStream(mixture, RAMP, 7, WEIGHTS), step, world_size, micro_batch)
    assert np.array_equal(np.concatenate([part.input_ids for part in parts]), reference.input_ids)
    assert np.array_equal(np.concatenate([part.labels for part in parts]), reference.labels)
    start = sequences_at(RAMP, step - 1)
    assert [part.first_slot for part in parts] == list(range(start, start + batch, micro_batch))
    assert sum(part.targets for part in parts) == reference.targets == batch * 16


def test_the_ramp_consumes_every_sequence_once(mixture: Prepared) -> None:
    stream = BatchStream(mixture, RAMP, 7, WEIGHTS)
    slots = [slot for step in range(1, 31) for slot in stream.slots(step)]
    assert slots == list(range(sequences_at(RAMP, 30)))
    assert {len(stream.slots(step)) for step in range(1, 31)} == {12, 18, 24}


def test_an_epoch_of_a_source_holds_each_row_once_and_the_next_another_order(mixture: Prepared) -> None:
    order = GlobalOrder(mixture, {"small": 1.0}, 3)
    count = len(mixture.rows("small", "train"))
    epochs = [[order[n].row for n in range(count * k, count * (k + 1))] for k in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != list(range(count))


def test_the_mixture_keeps_its_weights_at_every_point(mixture: Prepared) -> None:
    order = GlobalOrder(mixture, WEIGHTS, 3)
    seen: Counter[str] = Counter()
    for n in range(3000):
        seen[order[n].source] += 1
        for name, weight in WEIGHTS.items():
            assert abs(seen[name] - weight * (n + 1)) <= len(WEIGHTS)


def test_the_order_depends_on_the_seed_and_not_on_the_order_of_keys(mixture: Prepared) -> None:
    def first(seed: int, weights: dict[str, float]) -> list[Any]:
        order = GlobalOrder(mixture, weights, seed)
        return [order[n] for n in range(100)]

    assert first(1, WEIGHTS) == first(1, dict(reversed(WEIGHTS.items())))
    assert first(1, WEIGHTS) != first(2, WEIGHTS)
    assert {ref.source for ref in first(1, {**WEIGHTS, "small": 0.0})} == {"middle", "large"}
    assert first(2**40, WEIGHTS)


def test_labels_are_the_next_tokens(mixture: Prepared) -> None:
    stream = BatchStream(mixture, Schedule(global_batch=4), 7, WEIGHTS)
    (batch,) = stream.micro_batches(3, 0, 1, 4)
    assert batch.input_ids.dtype == batch.labels.dtype == np.int64
    for index in range(4):
        ref = stream.order[8 + index]
        row = mixture.rows(ref.source, "train").ids(ref.row)
        assert batch.input_ids[index].tolist() == row[:-1].tolist()
        assert batch.labels[index].tolist() == row[1:].tolist()


def test_a_batch_that_does_not_divide_is_refused(mixture: Prepared) -> None:
    stream = BatchStream(mixture, Schedule(global_batch=12), 7, WEIGHTS)
    with pytest.raises(UmbelError, match="12 sequences of step 1 are not divisible by 5 processes"):
        stream.micro_batches(1, 0, 5, 1)


def test_held_out_rows_come_in_order_and_as_many_as_there_are(mixture: Prepared) -> None:
    stream = BatchStream(mixture, Schedule(global_batch=4), 7, WEIGHTS)
    table = mixture.rows("large", "held_out")
    assert [len(batch.input_ids) for batch in stream.held_out("large", 7, 3)] == [3, 3, 1]
    everything = stream.held_out("large", 10**6, 4)
    assert sum(len(batch.input_ids) for batch in everything) == len(table)
    assert everything[1].labels[0].tolist() == table.ids(4)[1:].tolist()
    assert [batch.first_slot for batch in everything[:2]] == [0, 4]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("chats")
    lines = [
        f'{{"messages": [{{"role": "user", "content": "count to {n}"}}, '
        f'{{"role": "assistant", "content": "{" ".join(map(str, range(n % 9 + 1)))}"}}]}}\n'
        for n in range(60)
    ]
    (folder / "chats.jsonl").write_text("".join(lines))
    tokenizer = Tokenizer(vocab_size=300)
    return prepare(
        Data(
            path=str(folder / "chats.jsonl"),
            packing=False,
            sequence_length=100,
            cache_dir=str(folder),
            tokenizer=tokenizer,
        )
    )


def test_unpacked_micro_batches_are_trimmed_and_padding_is_not_learned(chats: Prepared) -> None:
    stream = BatchStream(chats, Schedule(global_batch=6), 7, {"data": 1.0})
    widths = set()
    for step in range(1, 9):
        for batch in gather(stream, step, 1, 2):
            refs = [stream.order[batch.first_slot + k] for k in range(2)]
            rows = [chats.rows("data", "train").ids(ref.row) for ref in refs]
            longest = max(len(row) for row in rows) - 1
            assert batch.input_ids.shape == (2, -(-longest // 8) * 8)
            for index, row in enumerate(rows):
                assert (batch.input_ids[index, len(row) - 1 :] == chats.pad_id).all()
                assert (batch.labels[index, len(row) - 1 :] == IGNORED).all()
                learned = batch.labels[index][batch.labels[index] != IGNORED]
                mask = chats.rows("data", "train").mask(refs[index].row)
                assert mask is not None
                assert learned.tolist() == row[mask].tolist()
                text = chats.tokenizer.decode(learned.tolist())
                assert text.endswith("<|im_end|>\n<|endoftext|>")
                assert "count" not in text
            assert batch.targets == (batch.labels != IGNORED).sum() > 0
            widths.add(batch.input_ids.shape[1])
    assert len(widths) > 1


def test_which_rows_share_a_micro_batch_does_not_depend_on_the_world_size(chats: Prepared) -> None:
    stream = BatchStream(chats, Schedule(global_batch=12), 7, {"data": 1.0})
    one, three = (gather(stream, 2, world_size, 2) for world_size in (1, 3))
    assert [batch.input_ids.tolist() for batch in one] == [batch.input_ids.tolist() for batch in three]


def test_inspecting_tells_what_a_rank_gets(mixture: Prepared) -> None:
    stream = BatchStream(mixture, Schedule(global_batch=6), 7, WEIGHTS)
    found = batches(stream, range(2, 4), 1, 2)
    (batch,) = stream.micro_batches(3, 1, 2, 3)
    assert [entry["first_slot"] for entry in found] == [9, 15]
    assert found[1]["input_ids"] == batch.input_ids.tolist()
    assert found[1]["mask"] == [[1] * 16] * 3
    assert len(found[1]["sources"]) == 3
    for rank, world_size in ((2, 2), (-1, 2)):
        with pytest.raises(UmbelError, match="ranks of 2 are 0 to 1"):
            batches(stream, range(1, 2), rank, world_size)


def test_inspecting_a_step_shows_its_text(mixture: Prepared, chats: Prepared) -> None:
    stream = BatchStream(mixture, Schedule(global_batch=6), 7, WEIGHTS)
    shown = sequences(stream, 2)
    assert [(entry["slot"], entry["sequence"]) for entry in shown] == [(k, 6 + k) for k in range(6)]
    assert shown[3] == sequences(stream, 2, 3)[0]
    ids = mixture.rows(shown[3]["source"], "train").ids(shown[3]["row"]).tolist()
    assert shown[3]["text"] == mixture.tokenizer.decode(ids)
    (chat,) = sequences(BatchStream(chats, Schedule(global_batch=2), 7, {"data": 1.0}), 1, 0)
    assert chat["learned"] in chat["text"].replace("\n<|im_start|>assistant\n", "\n")
    for arguments, what in (((2, 6), "slots 0 to 5"), ((0,), "count from 1")):
        with pytest.raises(UmbelError, match=what):
            sequences(stream, *arguments)


def test_any_step_costs_the_same(mixture: Prepared) -> None:
    stream = BatchStream(mixture, Schedule(global_batch=4), 7, WEIGHTS)
    assert len(stream.micro_batches(10**9, 0, 1, 4)) == 1


def test_files_hold_no_path_of_this_machine(mixture: Prepared, tmp_path: Path) -> None:
    assert str(tmp_path.parent.parent) not in (mixture.folder / "manifest.json").read_text()
