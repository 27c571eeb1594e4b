from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from record.jsonl import append_lines, read_lines, tail_lines


def test_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []
    assert tail_lines(tmp_path / "none.jsonl") == []


@given(
    lines=st.lists(
        st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=9)), min_size=1, max_size=6
    ),
    cut=st.integers(min_value=0),
)
def test_a_file_cut_at_any_byte_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, object]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "events.jsonl"
    append_lines(path, lines)
    data = path.read_bytes()
    cut %= len(data) + 1
    os.truncate(path, cut)
    kept = lines[: data[:cut].count(b"\n")]
    assert read_lines(path) == kept
    append_lines(path, [{"after": "kill"}])
    assert read_lines(path) == [*kept, {"after": "kill"}]


def test_a_broken_line_in_the_middle_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UmbelError, match=r"metrics.jsonl:2: is not a line of JSON"):
        read_lines(path)


def test_a_line_that_is_no_object_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n7\n')
    with pytest.raises(UmbelError, match=r"metrics.jsonl:2: is not a JSON object"):
        read_lines(path)


def test_a_line_without_its_keys_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_lines(path, [{"event": "start", "time": "now"}, {"event": "start"}])
    for read in (read_lines, tail_lines):
        with pytest.raises(UmbelError, match="lacks time"):
            read(path, keys=("event", "time"))


def test_zeros_after_a_power_cut_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bytes(100_000))
    assert read_lines(path) == [{"step": 1}]
    append_lines(path, [{"step": 2}])
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_nan_becomes_null(tmp_path: Path) -> None:
    append_lines(tmp_path / "m.jsonl", [{"loss": float("nan"), "by": {"code": float("inf")}, "lr": [0.1]}])
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"loss": None, "by": {"code": None}, "lr": [0.1]}


def test_tail_reads_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    append_lines(path, [{"step": step} for step in range(1000)])
    tail = tail_lines(path, 100)
    assert tail == [{"step": step} for step in range(1000 - len(tail), 1000)]
    assert 0 < len(tail) < 10


def _append_many(path: Path, writer: int) -> None:
    for number in range(200):
        append_lines(path, [{"writer": writer, "number": number, "pad": "x" * 200}])


def test_two_writers_never_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, writer)) for writer in (0, 1)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    lines = read_lines(path)
    for writer in (0, 1):
        assert [line["number"] for line in lines if line["writer"] == writer] == list(range(200))


def test_a_full_disk_leaves_what_was_there() -> None:
    with pytest.raises(OSError, match="No space left"):
        append_lines(Path("/dev/full"), [{"step": 1}])
