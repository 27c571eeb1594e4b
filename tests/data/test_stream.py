from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from configs.batch import batch_divisor
from configs.compose import compose
from configs.schema import RunConfig
from data.inspect import Start, batches, sequences
from data.micro_batch import IGNORED, MicroBatch
from data.prepare import prepare_run
from data.stream import BatchStream, Share, StepBatches
from support.elastic import LENGTH, elastic_config, write_sources

MODES = ("prepared", "streaming")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    write_sources(folder)
    return folder


@pytest.fixture(scope="module", params=MODES)
def stream(request: pytest.FixtureRequest, corpus: Path) -> BatchStream:
    return open_stream(elastic_config(corpus, request.param, "data.workers=0"))


def open_stream(config: RunConfig) -> BatchStream:
    return BatchStream(prepare_run(config), config)


def of_all_ranks(stream: BatchStream, step: int, world_size: int, micro_batch: int) -> list[MicroBatch]:
    shares = [Share(rank, world_size, micro_batch) for rank in range(world_size)]
    found = [batch for share in shares for batch in stream.micro_batches(stream.rows(share), step, share)]
    return sorted(found, key=lambda batch: batch.first_slot)


# Shares -----------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 9))
def test_a_lane_stays_with_its_rank_whatever_the_ramp(
    world_size: int, micro_batch: int, most: int, rounds: int
) -> None:
    """The lane of a sequence is its number modulo the largest batch; every batch divides evenly."""
    unit = world_size * micro_batch
    begin, largest = rounds * unit, most * unit
    for batch in range(unit, largest + 1, unit):
        taken = []
        for rank in range(world_size):
            share = Share(rank, world_size, micro_batch)
            for part in share.of(range(begin, begin + batch)):
                assert len(part) == micro_batch
                assert all(share.owns(slot % largest) for slot in part)
                taken += list(part)
        assert sorted(taken) == list(range(begin, begin + batch))
        begin += batch


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UmbelError, match="12 sequences are not divisible by 5 processes"):
        Share(0, 5, 1).of(range(12))


# Batches ----------------------------------------------------------------------------------------------


def test_which_rows_share_a_micro_batch_does_not_depend_on_the_world_size(stream: BatchStream) -> None:
    reference = of_all_ranks(stream, 1, 1, 4)
    for world_size in (2, 3, 6):
        assert 24 % (world_size * 4) == 0 == batch_divisor(stream.schedule) % (world_size * 4)
        same = of_all_ranks(stream, 1, world_size, 4)
        assert [batch.input_ids.tolist() for batch in same] == [one.input_ids.tolist() for one in reference]
        assert [batch.first_slot for batch in same] == [batch.first_slot for batch in reference]


def test_the_ramp_consumes_every_sequence_once(stream: BatchStream) -> None:
    slots = [slot for step in range(1, 31) for slot in stream.slots(step)]
    assert slots == list(range(len(slots)))
    assert {len(stream.slots(step)) for step in range(1, 31)} == {24, 48}


def test_held_out_rows_come_in_order_and_as_many_as_there_are(stream: BatchStream) -> None:
    table = stream.prepared.rows("large", "held_out")
    assert [len(batch.input_ids) for batch in stream.held_out("large", 7, 3)] == [3, 3, 1]
    everything = stream.held_out("large", 10**6, 4)
    assert sum(len(batch.input_ids) for batch in everything) == len(table)
    assert everything[1].input_ids[0].tolist() == table.row(4).ids[:-1].tolist()
    assert [batch.first_slot for batch in everything[:2]] == [0, 4]


def test_held_out_documents_are_not_trained_on(stream: BatchStream) -> None:
    backend = stream.prepared.tokenizer.backend

    def documents(ids: Any) -> set[str]:
        words = (backend.id_to_token(int(token)) for token in np.unique(ids))
        return {word.rpartition(":")[0] for word in words if ":" in word}

    held_out = {name for batch in stream.held_out("large", 100, 4) for name in documents(batch.input_ids)}
    share = Share(micro_batch=24)
    with stream.read(range(1, 31), share) as read:
        trained = {name for step in read for batch in step.batches for name in documents(batch.input_ids)}
    assert held_out
    assert trained
    assert not held_out & trained


def test_any_step_of_prepared_rows_costs_the_same(corpus: Path) -> None:
    stream = open_stream(elastic_config(corpus, "prepared"))
    share = Share(micro_batch=48)
    assert len(stream.micro_batches(stream.rows(share), 10**9, share)) == 1


# Chats ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MODES)
def chats(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BatchStream:
    folder = tmp_path_factory.mktemp("chats")
    lines = [
        f'{{"messages": [{{"role": "user", "content": "count to {n}"}}, '
        f'{{"role": "assistant", "content": "{" ".join(map(str, range(n % 9 + 1)))}"}}]}}\n'
        for n in range(60)
    ]
    (folder / "chats.jsonl").write_text("".join(lines))
    return open_stream(
        compose(
            [
                "run.name=chats",
                "model=llama_tiny",
                f'data.path="{folder / "chats.jsonl"}"',
                f"data.mode={request.param}",
                "data.packing=none",
                "data.sequence_length=100",
                f'data.cache_dir="{folder}"',
                "data.tokenizer.vocab_size=300",
                "schedule.global_batch=6",
                "data.workers=0",
            ]
        )
    )


def test_one_document_per_row_is_trimmed_and_only_answers_are_learned(chats: BatchStream) -> None:
    widths, share = set(), Share(micro_batch=2)
    rows = chats.rows(share)
    for step in range(1, 9):
        for batch in chats.micro_batches(rows, step, share):
            widths.add(batch.input_ids.shape[1])
            for inputs, labels in zip(batch.input_ids, batch.labels, strict=True):
                learned = labels[labels != IGNORED]
                text = chats.prepared.tokenizer.decode(learned.tolist())
                assert text.endswith("<|im_end|>\n<|endoftext|>")
                assert "count" not in text
                assert "count" in chats.prepared.tokenizer.decode(inputs.tolist())
            assert batch.targets == (batch.labels != IGNORED).sum() > 0
            assert batch.input_ids.shape[1] % 8 == 0
    assert len(widths) > 1


# Looking at it ----------------------------------------------------------------------------------------


def test_inspecting_tells_what_a_rank_gets(stream: BatchStream) -> None:
    share = Share(1, 2, 3)
    found = batches(stream, range(2, 4), share)
    with stream.read(range(1, 4), share) as read:
        steps = list(read)
    expected = [batch for step in steps[1:] for batch in step.batches]
    assert [entry["input_ids"] for entry in found] == [batch.input_ids.tolist() for batch in expected]
    assert [entry["first_slot"] for entry in found] == [batch.first_slot for batch in expected]
    assert found[0]["mask"] == (expected[0].labels != IGNORED).astype(int).tolist()
    assert all(len(entry["documents"]) == len(entry["sources"]) == 3 for entry in found)


def test_inspecting_a_step_names_its_documents(stream: BatchStream) -> None:
    shown = sequences(stream, 3)
    assert [entry["slot"] for entry in shown] == list(range(24))
    assert shown[5] == sequences(stream, 3, 5)[0]
    for entry in shown:
        assert entry["tokens"] == sum(document["tokens"] for document in entry["documents"])
        for document in entry["documents"]:
            assert document["file"].startswith(f"{entry['source']}-")
            first = document["text"].split("<")[0].split()
            assert all(word.startswith(f"{entry['source']}:{document['number']}:") for word in first)
    for arguments, what in (((2, 24), "slots 0 to 23"), ((0,), "count from 1")):
        with pytest.raises(UmbelError, match=what):
            sequences(stream, *arguments)


def test_inspecting_from_a_checkpoint_shows_the_same(corpus: Path) -> None:
    stream = open_stream(elastic_config(corpus, "streaming", "data.workers=0"))
    with stream.read(range(1, 16), Share(micro_batch=24)) as read:
        *_, last = read
    assert sequences(stream, 18, 7, Start(15, last.cursors)) == sequences(stream, 18, 7)


# Processes --------------------------------------------------------------------------------------------


def shown(steps: list[StepBatches]) -> Any:
    return [[batch.input_ids.tolist() for batch in step.batches] for step in steps]


@pytest.fixture
def feeding(corpus: Path) -> Callable[[int], BatchStream]:
    return lambda workers: open_stream(elastic_config(corpus, "streaming", f"data.workers={workers}"))


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_what_a_thread_gives(feeding: Callable[[int], BatchStream], workers: int) -> None:
    share = Share(1, 2, 4)
    with feeding(0).read(range(1, 21), share) as read:
        alone = list(read)
    with feeding(workers).read(range(1, 21), share) as read:
        together = list(read)
    assert shown(together) == shown(alone)
    assert [step.cursors.tolist() for step in together] == [step.cursors.tolist() for step in alone]  # type: ignore[union-attr]
    assert not [child for child in psutil.Process().children() if "data.streaming.feeder" in child.cmdline()]


def test_a_killed_process_is_replaced_and_nobody_sees_it(feeding: Callable[[int], BatchStream]) -> None:
    share = Share(micro_batch=24)
    with feeding(0).read(range(1, 31), share) as read:
        alone = list(read)
    seen = []
    with feeding(2).read(range(1, 31), share) as read:
        for step in read:
            seen.append(step)
            if step.step in (3, 11, 19):
                for child in psutil.Process().children():
                    os.kill(child.pid, signal.SIGKILL)
    assert shown(seen) == shown(alone)
    assert seen[-1].cursors is not None
    assert seen[-1].cursors.tolist() == alone[-1].cursors.tolist()  # type: ignore[union-attr]


def test_a_process_that_dies_again_and_again_is_told(
    feeding: Callable[[int], BatchStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # no interpreter starts
    with (
        feeding(1).read(range(1, 3), Share(micro_batch=24)) as read,
        pytest.raises(
            UmbelError, match=r"data\.workers: a process that reads the data ended 4 times at step 1"
        ),
    ):
        next(read)


def test_an_error_in_a_process_is_the_same_line(tmp_path: Path) -> None:
    write_sources(tmp_path)
    stream = open_stream(elastic_config(tmp_path, "streaming", "data.workers=1"))
    lines = (tmp_path / "large-1.jsonl").read_text()
    (tmp_path / "large-1.jsonl").write_text(lines.replace("large:200:", "large:201:"))
    with (
        stream.read(range(1, 31), Share(micro_batch=24)) as read,
        pytest.raises(UmbelError, match=r"large-1\.jsonl"),
    ):
        list(read)


def test_manifests_hold_no_path_of_this_machine(stream: BatchStream, corpus: Path) -> None:
    assert str(corpus) not in (stream.prepared.folder / "manifest.json").read_text()
    assert json.dumps(stream.prepared.manifest).count(str(LENGTH))


def test_a_process_whose_lanes_sit_out_a_step_passes_a_skipped_range_too(corpus: Path) -> None:
    # While the batch ramps, a rank of 24 has one row a step: one of its two processes has none to give.
    seen = []
    for workers in (0, 2):
        overrides = (f"data.workers={workers}", "data.skip=[[96,144]]")
        stream = open_stream(elastic_config(corpus, "streaming", *overrides))
        with stream.read(range(1, 9), Share(5, 24, 1)) as read:
            seen.append([step.cursors.tolist() for step in read])  # type: ignore[union-attr]
    assert seen[1] == seen[0]
