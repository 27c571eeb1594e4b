from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.rows.pack import Row
from data.rows.progress import NAME, Progress, ProgressFile


def entry(number: int) -> dict[str, Any]:
    return {"name": f"shard-{number:05d}.parquet", "rows": number, "sha256": "0"}


def advance(progress: Progress, shards: int) -> None:
    """One more part, which gave train shards."""
    progress.parts += 1
    for _ in range(shards):
        progress.splits["train"].shards.append(entry(progress.shards))
    progress.splits["train"].tokens += 100
    row = Row(np.arange(3, dtype=np.int32), np.ones(3, bool), np.array([3], np.int32), np.array([2**40]))
    progress.carries["train"] = row


def same(one: Progress, other: Progress) -> bool:
    carries = [progress.carries.pop("train") for progress in (one, other)]
    plain = [carry and {key: value.tolist() for key, value in carry._asdict().items()} for carry in carries]
    return one == other and plain[0] == plain[1]


@pytest.mark.parametrize("torn", ["", "{", '{"parts": 9'])
def test_whole_lines_are_trusted_and_a_torn_one_is_not(tmp_path: Path, torn: str) -> None:
    file, progress = ProgressFile(tmp_path), Progress()
    for shards in (1, 3, 0, 2):
        advance(progress, shards)
        file.add(progress)
    with open(tmp_path / NAME, "a") as opened:
        opened.write(torn)
    again = ProgressFile(tmp_path)
    read = again.read()
    assert [shard["rows"] for shard in read.splits["train"].shards] == [0, 1, 2, 3, 4, 5]
    advance(read, 1)
    again.add(read)
    advance(progress, 1)
    assert same(ProgressFile(tmp_path).read(), progress)


def test_what_no_line_names_is_removed(tmp_path: Path) -> None:
    file, progress = ProgressFile(tmp_path), Progress()
    advance(progress, 1)
    file.add(progress)
    for name in ("shard-00000.parquet", "shard-00000.arrow", "shard-00001.parquet", ".part-00001.tmp"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_text("")
    ProgressFile(tmp_path).read()
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [
        "shard-00000.arrow",
        "shard-00000.parquet",
    ]


def test_nothing_done_is_where_one_begins(tmp_path: Path) -> None:
    assert ProgressFile(tmp_path / "new").read() == Progress()
    (tmp_path / NAME).write_text('{"parts": 1')
    assert ProgressFile(tmp_path).read() == Progress()
