"""Small runs for tests: seconds on one core."""

from __future__ import annotations

import json
import random
from pathlib import Path

from configs.compose import compose
from configs.schema import RunConfig

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
