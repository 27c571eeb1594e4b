"""Small models trained here, and chats for them to learn."""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch

from configs.compose import compose
from configs.schema import RunConfig
from record.events import next_attempt
from record.folder import RunFolder
from record.lock import RunLock
from support.runs import TINY, freeze
from train.distributed import World
from train.export import export
from train.session import Session
from train.stop import SIGNALS

ALONE = World(rank=0, size=1, device=torch.device("cpu"), control=None)
LLAMA = (
    "model=llama_tiny",
    "model.config.hidden_size=32",
    "model.config.intermediate_size=64",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2",
    "model.config.num_key_value_heads=1",
    "model.config.max_position_embeddings=256",
    "model.config.vocab_size=320",
    "model.config.initializer_range=0.15",  # from 0.02 so narrow a model would be slow to start
    *(override for override in TINY if not override.startswith("model=") and "model.config" not in override),
)
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "rose": "red"}


def train_here(config: RunConfig) -> RunFolder:
    """Train in this process, as the worker does, and leave the process as it was."""
    folder = freeze(config)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        Session(config, folder, ALONE, next_attempt(folder), RunLock(folder)).run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.enable()
        gc.unfreeze()
    return folder


@functools.cache
def base_model() -> Path:
    """A small Llama that answers, but wrongly, exported: somebody's pretrained model."""
    home = Path(os.environ["HOME"]) / "base"
    corpus = chats(home / "chats.jsonl", shift=1)
    places = (f'run.dir="{home / "runs"}"', f'data.path="{corpus}"', "run.name=base", "optimizer.lr=5e-3")
    shape = (
        "schedule.steps=80",
        "schedule.global_batch=16",
        "data.packing=none",
        "data.sequence_length=64",
    )
    folder = train_here(compose([*LLAMA, *places, *shape]))
    return export(folder.path, home / "model", dtype="fp32")


def chats(path: Path, count: int = 32, *, shift: int = 0) -> Path:
    """JSONL of ``{"messages"}``: which colour has a thing? With a shift every answer is another thing's."""
    things, lines = list(COLOURS), []
    for number in range(count):
        question = {"role": "user", "content": f"{number // 4} {things[number % 4]}?"}
        answer = {"role": "assistant", "content": COLOURS[things[(number + shift) % 4]]}
        lines.append(json.dumps({"messages": [question, answer]}) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def finetune(
    folder: Path, experiment: str = "finetune", *overrides: str, base: Path | None = None
) -> RunConfig:
    """What ``umbel launch experiment=… model.pretrained=… data.path=…`` composes, small enough for a test."""
    return compose([
        f"experiment={experiment}",
        f'model.pretrained="{base or base_model()}"',
        f'data.path="{chats(folder / "chats.jsonl")}"',
        f'run.dir="{folder / "runs"}"',
        "model.precision=fp32",
        "data.sequence_length=128",
        "schedule.steps=4",
        "schedule.warmup_steps=1",
        "schedule.global_batch=8",
        "parallelism.micro_batch=4",
        "optimizer.lr=5e-3",
        "tracker.log_every=1",
        *overrides,
    ])  # fmt: skip


def logits(model: Any, seed: int = 0) -> torch.Tensor:
    """Of some tokens, in eval mode: equal models, equal logits."""
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()
