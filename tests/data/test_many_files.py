"""A run over 100,000 files starts in seconds: what its manifest knows is neither listed nor read again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FILES, SECONDS = 100_000, 15

START = """
import json, sys
from pathlib import Path
from base.files import read_json, write_json
from configs.compose import compose
from data.prepare import prepare_run
from data.stream import BatchStream, Share

kept, overrides = Path(sys.argv[1]), sys.argv[2:]
config = compose(overrides)
prepared = prepare_run(config, began_with=read_json(kept) if kept.exists() else None)
stream = BatchStream(prepared, config)
with stream.read(range(1, 2), Share(0, 1, 4)) as steps:
    for step in steps:
        files = [source["files"] for source in prepared.manifest["sources"].values()]
        print(step.batches[0].input_ids.shape[0], sum(map(len, files)))
write_json(kept, prepared.manifest)
"""


def started(kept: Path, overrides: list[str]) -> tuple[str, float]:
    """What one start in a process of its own read, and the seconds it took."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", START, str(kept), *overrides], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), time.monotonic() - began


@pytest.mark.slow
def test_a_run_over_100_000_files_starts_in_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    for number in range(FILES):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03d}").mkdir(parents=True)
        descriptor = os.open(folder / f"{number // 1000:03d}" / f"{number:06d}.txt", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"document %d says the same as all others" % number)
        os.close(descriptor)
    overrides = [
        f"data.path={folder}",
        "data=local",
        "data.mode=streaming",
        "data.sequence_length=64",
        "data.workers=0",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.tokenizer.vocab_size=400",
        "data.tokenizer.train_bytes=100000",
        "schedule.global_batch=4",
        "schedule.steps=10",
        "schedule.warmup_steps=1",
        "model.config.vocab_size=400",
    ]
    first, took = started(tmp_path / "manifest.json", overrides)
    assert first == f"4 {FILES}"
    again, seconds = started(tmp_path / "manifest.json", overrides)
    assert again == first
    assert seconds < SECONDS, f"{seconds:.1f} s, the first start took {took:.1f} s"
