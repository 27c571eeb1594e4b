"""Continuations of fixed prompts while the run learns: the first thing a person looks at."""

from __future__ import annotations

from collections.abc import Callable

import torch

from configs.schema import Samples as SampleSettings
from data.tokenizer import TextTokenizer
from train.distributed import World
from train.engine import Engine
from train.loop import StepRecord


class Samples:
    """Greedy continuations every ``every`` steps; ``tell`` is called on rank 0 with step, prompt and text."""

    def __init__(
        self, settings: SampleSettings, engine: Engine, tokenizer: TextTokenizer, world: World,
        sequence_length: int, tell: Callable[[int, str, str], None],
    ) -> None:  # fmt: skip
        self.settings, self.engine, self.tokenizer, self.world = settings, engine, tokenizer, world
        self.sequence_length, self.tell = sequence_length, tell

    def after_step(self, record: StepRecord) -> None:
        if not self.settings.every or record.position.step % self.settings.every:
            return
        for prompt in self.settings.prompts:
            text = self._continue(prompt)
            if self.world.is_first:
                self.tell(record.position.step, prompt, text)

    @torch.no_grad()
    def _continue(self, prompt: str) -> str:
        """All processes compute the same, for under ZeRO-3 a forward pass is collective."""
        ids = self.tokenizer.encode(prompt)
        start = len(ids)
        self.engine.model.eval()
        for _ in range(self.settings.max_new_tokens):
            window = torch.tensor([ids[-self.sequence_length :]], device=self.world.device)
            ids.append(int(self.engine.forward(window)[0, -1].argmax()))
        self.engine.model.train()
        return self.tokenizer.decode(ids[start:])
