from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.errors import UmbelError
from data.rows import shards
from data.rows.pack import Row, learned, one_per_row, pack
from data.rows.shards import RowTable, copy_of, write_copy, write_shard
from data.tokens.encode import Example


def rows_of(lengths: list[int], length: int = 8, chats: bool = False) -> list[Row]:
    generator = np.random.default_rng(0)
    examples = [
        Example(
            generator.integers(0, 50, size).astype(np.int32),
            generator.random(size) < 0.5 if chats else None,
            2**40 + number,
        )
        for number, size in enumerate(lengths)
    ]
    return pack(None, examples, length)[0] if not chats else one_per_row(examples, length)


def same(one: Row, other: Row) -> bool:
    return all(
        (left is None and right is None) or (left.dtype == right.dtype and left.tolist() == right.tolist())
        for left, right in zip(one, other, strict=True)
    )


@given(st.lists(st.lists(st.integers(1, 30), min_size=3, max_size=9), min_size=1, max_size=3), st.booleans())
def test_rows_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], chats: bool
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    written = [rows_of([9, *part], chats=chats) for part in lengths]
    entries = [write_shard(folder / f"{n}.parquet", rows) for n, rows in enumerate(written)]
    table = RowTable(folder, entries)
    rows = [row for part in written for row in part]
    assert len(table) == len(rows)
    assert all(same(table.row(number), row) for number, row in enumerate(rows))
    counts = np.zeros(50, np.int64)
    for row in rows:
        np.add.at(counts, row.ids[learned(len(row.ids), row.doc_lens, row.mask)], 1)
    assert table.target_counts(50, 9).tolist() == counts.tolist()
    with pytest.raises(IndexError):
        table.row(len(rows))


def test_parquet_files_are_as_promised(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", rows_of([30] * 600))
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert [field.name for field in file.schema_arrow] == ["input_ids", "doc_lens", "doc_ids"]
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        assert [group.num_rows for group in groups] == [1000, 1000, 249]
        column = groups[0].column(0)
        assert (column.compression, column.statistics, column.has_dictionary_page) == ("ZSTD", None, False)


def damaged(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_an_error_that_names_the_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard-00003.parquet"
    entry = write_shard(path, rows_of([30] * 600))
    whole = path.read_bytes()
    for at in (200, len(whole) // 2, len(whole) - 2000, len(whole) - 3):
        path.write_bytes(whole)
        damaged(path, at)
        with pytest.raises(UmbelError, match=r"shard-00003\.parquet: (is damaged|does not hold)"):
            write_copy(path, entry["sha256"])
    other = write_shard(tmp_path / "other.parquet", rows_of([31] * 600))
    path.write_bytes(whole)
    with pytest.raises(UmbelError, match=r"shard-00003\.parquet: does not hold the rows"):
        write_copy(path, other["sha256"])
    path.unlink()
    with pytest.raises(UmbelError, match=r"shard-00003\.parquet: is damaged"):
        write_copy(path, entry["sha256"])


@pytest.mark.parametrize("left", [None, 0, 100, 5000])
def test_a_copy_that_is_missing_or_cut_short_is_made_again(tmp_path: Path, left: int | None) -> None:
    rows = rows_of([30] * 600)
    entry = write_shard(tmp_path / "a.parquet", rows)
    copy = copy_of(tmp_path / "a.parquet")
    size = copy.stat().st_size
    copy.unlink() if left is None else os.truncate(copy, left)
    assert same(RowTable(tmp_path, [entry]).row(77), rows[77])
    assert copy.stat().st_size == size


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAPPED", 2)
    rows = rows_of([30] * 3)
    entries = [write_shard(tmp_path / f"{n}.parquet", rows) for n in range(5)]
    table = RowTable(tmp_path, entries)

    def maps() -> int:
        gc.collect()
        mapped = Path("/proc/self/maps").read_text()
        return sum(f"{tmp_path}/{n}.arrow" in mapped for n in range(5))

    held = [table.row(number).ids for number in range(len(table))]
    assert [ids.tolist() for ids in held] == [row.ids.tolist() for row in rows] * 5
    assert maps() == 5  # rows that are in use keep theirs
    held.clear()
    assert maps() == 2


def test_the_hash_is_that_of_the_rows(tmp_path: Path) -> None:
    rows = rows_of([30] * 10)
    hashes: set[Any] = {write_shard(tmp_path / f"{n}.parquet", rows)["sha256"] for n in range(2)}
    other = Row(rows[0].ids, None, rows[0].doc_lens, rows[0].doc_ids + 1)
    hashes.add(write_shard(tmp_path / "c.parquet", [other, *rows[1:]])["sha256"])
    assert len(hashes) == 2


def test_a_flipped_byte_in_a_copy_is_never_taken(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.parquet"
    entries, rows = [write_shard(path, rows_of([40] * 9))], rows_of([40] * 9)
    copy = copy_of(path)
    whole, token = copy.read_bytes(), rows[3].ids[4:7].tobytes()
    at = whole.index(token)
    copy.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    table = RowTable(tmp_path, entries)
    assert same(table.row(0), rows[0])
    with pytest.raises(UmbelError, match=r"shard-00000\.arrow: is damaged \(row 3\); delete it"):
        table.row(3)
    copy.unlink()
    assert same(RowTable(tmp_path, entries).row(3), rows[3])


def test_the_copy_of_other_rows_is_made_again(tmp_path: Path) -> None:
    path, rows = tmp_path / "shard-00000.parquet", rows_of([40] * 9)
    write_shard(path, rows_of([30] * 12))
    stale = copy_of(path).read_bytes()
    entries = [write_shard(path, rows)]
    copy_of(path).write_bytes(stale)
    assert same(RowTable(tmp_path, entries).row(3), rows[3])
