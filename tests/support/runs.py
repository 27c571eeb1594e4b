"""Small runs for tests: seconds on one core."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from configs.compose import compose, save
from configs.schema import RunConfig
from record.folder import RunFolder
from record.metrics import read_metrics
from support.processes import Finished, run_commands

TINY = (
    "run.name=tiny",
    "model=bloom_tiny",
    "model.precision=fp32",
    "model.config.hidden_size=32",
    "model.config.n_layer=2",
    "model.config.n_head=2",
    "model.config.vocab_size=320",
    "data.sequence_length=32",
    "data.tokenizer.vocab_size=320",
    "schedule.steps=4",
    "schedule.warmup_steps=1",
    "schedule.global_batch=4",
    "tracker.log_every=1",
)
_WORDS = (
    "a",
    "bloom",
    "of",
    "many",
    "stalks",
    "springing",
    "from",
    "one",
    "point",
    "carries",
    "small",
    "flowers",
)


def tiny(folder: Path, *overrides: str) -> RunConfig:
    """A checked run of 4 steps on 200 short documents, all of it inside ``folder``."""
    corpus = write_corpus(folder / "corpus.jsonl")
    places = (f'run.dir="{folder / "runs"}"', f'data.path="{corpus}"')
    return compose([*TINY, *places, *overrides])


def write_corpus(path: Path, documents: int = 200, seed: int = 0) -> Path:
    """JSONL of ``{"text"}``: the same bytes for the same seed."""
    draw = random.Random(seed)
    lines = (
        json.dumps({"text": " ".join(draw.choices(_WORDS, k=draw.randint(5, 60)))}) for _ in range(documents)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def freeze(config: RunConfig) -> RunFolder:
    """What `umbel launch` leaves for the workers: a run folder with its run.yaml."""
    folder = RunFolder.of(config).create()
    save(config, folder.run_yaml)
    return folder


def work(
    config: RunConfig, processes: int = 1, *, env: dict[str, str] | None = None, timeout: float = 180
) -> list[Finished]:
    """Run the workers of a run to their end; says how each ended."""
    folder = freeze(config)
    command = [sys.executable, "-m", "train.worker", str(folder.run_yaml)]
    return run_commands(processes, command, env={"PYTHONSAFEPATH": "1", **(env or {})}, timeout=timeout)


def finish(config: RunConfig, processes: int = 1, **more: Any) -> dict[int, dict[str, Any]]:
    """`work`, which must end well; returns the metrics line of each step a reader sees."""
    folder = RunFolder.of(config)
    ended = work(config, processes, **more)
    logs = "\n".join(log.read_text()[-3000:] for log in sorted(folder.logs.rglob("*.log")))
    assert [one.returncode for one in ended] == [0] * processes, f"{ended}\n{logs}"
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step once"
    return {line["step"]: line for line in lines}
