"""A corpus whose every token says where it comes from, and runs over it cut into segments.

A word is ``<source>:<document>:<offset>`` and a token of its own. A segment is a process that reads some
steps for every rank of its world size and hands the state on as JSON: ``python -m support.elastic``.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from configs.batch import global_batch_at
from configs.compose import compose
from configs.plain import to_dict
from configs.schema import RunConfig
from configs.typed import build
from data.prepare import prepare_run
from data.stream import BatchStream, Share
from data.tokens.tokenizer import END_OF_TEXT

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"large": 260, "middle": 110, "small": 40}
LENGTH = 12
WORLDS = (1, 2, 3, 4, 6, 8, 12, 24)
"""Each divides every batch of `elastic_config`'s run."""


def write_sources(folder: Path, seed: int = 0) -> None:
    """Three sources, in two files each (one compressed differently), and the tokenizer of their words."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, words = random.Random(seed), [END_OF_TEXT]
    for source, count in SIZES.items():
        documents = []
        for number in range(count):
            text = [f"{source}:{number}:{offset}" for offset in range(draw.randint(1, 40))]
            words += text
            documents.append(json.dumps({"text": " ".join(text), "lang": draw.choice(["fr", "fr", "en"])}))
        half = count // 2
        (folder / f"{source}-0.jsonl").write_text("\n".join(documents[:half]) + "\n")
        (folder / f"{source}-1.jsonl").write_text("\n".join(documents[half:]))
    model = tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, END_OF_TEXT)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(folder / "tokenizer.json"))


def elastic_config(folder: Path, mode: str, *overrides: str, filtered: bool = True) -> RunConfig:
    """A run over `write_sources` with a batch ramp, two phases, a skipped range and a filter."""
    kept = ", filters: {columns: {lang: [fr]}, min_chars: 20}" if filtered else ""
    sources = ", ".join(
        f"{name}: {{path: '{folder}/{name}-*.jsonl', weight: {weight}{kept if name != 'small' else ''}}}"
        for name, weight in (("large", 0.5), ("middle", 0.35), ("small", 0.15))
    )
    return compose(
        [
            "run.name=elastic",
            "model=llama_tiny",
            "data=local",
            f"data.mode={mode}",
            f"data.sources={{{sources}}}",
            f'data.tokenizer.path="{folder / "tokenizer.json"}"',
            f'data.cache_dir="{folder / "cache"}"',
            f"data.sequence_length={LENGTH}",
            "data.held_out=0.1",
            "data.shuffle_window=60",
            "data.phases=[{from_tokens: 10000, weights: {middle: 0.3, small: 0.7}}]",
            "data.skip=[[480,576]]",
            "schedule.steps=40",
            "schedule.warmup_steps=0",
            "schedule.global_batch=48",
            "schedule.batch_ramp={start: 24, increment: 24, sequences: 240}",
            *overrides,
        ]
    )


@dataclass(frozen=True)
class Segment:
    """Some steps on some topology."""

    steps: int
    world_size: int
    workers: int
    micro_batch: int


def read_segment(
    config: RunConfig, done: int, cursors: list[Any] | None, segment: Segment
) -> tuple[list[list[list[int]]], list[Any] | None]:
    """For each step its rows' inputs and labels in slot order, and the lanes' cursors behind the last."""
    config.data.workers = segment.workers
    stream = BatchStream(prepare_run(config), config)
    steps = range(done + 1, done + 1 + segment.steps)
    before = None if cursors is None else np.array(cursors, np.int64).reshape(stream.cursors_shape)
    found: list[dict[int, list[int]]] = [{} for _ in steps]
    after = None if before is None and not stream.is_streaming else np.zeros(stream.cursors_shape, np.int64)
    for rank in range(segment.world_size):
        share = Share(rank, segment.world_size, segment.micro_batch)
        with stream.read(steps, share, before) as batches:
            last = None
            for rows, last in zip(found, batches, strict=True):
                for batch in last.batches:
                    for index in range(len(batch.input_ids)):
                        both = np.concatenate([batch.input_ids[index], batch.labels[index]])
                        assert batch.first_slot + index not in rows, "two ranks read one slot"
                        rows[batch.first_slot + index] = both.tolist()
        if after is not None and last is not None and last.cursors is not None:
            after += last.cursors
    for step, rows in zip(steps, found, strict=True):
        assert len(rows) == global_batch_at(config.schedule, step)
    ordered = [[rows[slot] for slot in sorted(rows)] for rows in found]
    return ordered, None if after is None else after.tolist()


def in_process(config: RunConfig, done: int, cursors: list[Any] | None, segment: Segment) -> Any:
    """`read_segment` in a process of its own; all that passes is JSON."""
    task = {"config": to_dict(config), "done": done, "cursors": cursors, "segment": asdict(segment)}
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-P", "-m", "support.elastic"]
    ended = subprocess.run(
        command, input=json.dumps(task), capture_output=True, text=True, timeout=300, env=environment
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    made = read_segment(
        build(RunConfig, given["config"]), given["done"], given["cursors"], Segment(**given["segment"])
    )
    json.dump(made, sys.stdout)
