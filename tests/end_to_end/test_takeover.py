"""Somebody takes over a run: another folder, another name, the data in another place, another topology."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from record.folder import RunFolder
from record.metrics import read_metrics
from support.runs import TINY, write_corpus


def umbel(home: Path, *arguments: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "umbel", *arguments],
        cwd=home,
        env=os.environ | env,
        check=False,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_copied_run_goes_on_elsewhere(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_corpus(ours / "corpus.jsonl")
    start = ("launch", "--yes", *TINY, "run.name=shared", "data.path=corpus.jsonl")
    code, told = umbel(ours, *start, UMBEL_STOP_AFTER="2")
    assert code == 0, told
    shutil.copytree(ours / "runs" / "shared", theirs / "runs" / "taken")
    (theirs / "texts").mkdir()
    shutil.copy(ours / "corpus.jsonl", theirs / "texts" / "corpus.jsonl")
    shutil.rmtree(ours)

    code, told = umbel(theirs, "resume", "taken", "data.path=texts/corpus.jsonl", "parallelism=zero3")
    assert code == 0, told
    lines = read_metrics(RunFolder(theirs / "runs" / "taken"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.slow
def test_other_data_is_refused_before_anything_changes(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    write_corpus(tmp_path / "other.jsonl", seed=1)
    start = ("launch", "--yes", *TINY, "run.name=kept")
    code, told = umbel(tmp_path, *start, "data.path=corpus.jsonl", UMBEL_STOP_AFTER="2")
    assert code == 0, told
    folder = RunFolder(tmp_path / "runs" / "kept")
    before = folder.run_yaml.read_bytes()

    code, told = umbel(tmp_path, *start, "data.path=other.jsonl")
    assert code == 2
    assert "corpus.jsonl" in told
    assert "Traceback" not in told
    assert folder.run_yaml.read_bytes() == before
    code, told = umbel(tmp_path, "resume", "kept")
    assert code == 0, told
