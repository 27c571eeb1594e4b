"""Continuations of fixed prompts while the run learns: the first thing a person looks at."""

from __future__ import annotations

from collections.abc import Callable

import torch

from configs.schema import Samples as SampleSettings
from data.tokens.tokenizer import TextTokenizer
from train.distributed import World
from train.engine import Engine
from train.loop import StepRecord
from train.prompt import Prompt, prompt_for


class Samples:
    """Greedy continuations every ``every`` steps (0: never).

    Args:
        sequence_length: how many tokens the model is shown at most.
        tell: called on rank 0 with step, prompt and text.
        chats: whether prompts are questions to answer, as in the run's data.
        stopping: whether all processes agree to stop; then it leaves off and tells nothing more.
    """

    def __init__(
        self, settings: SampleSettings, engine: Engine, tokenizer: TextTokenizer, world: World,
        sequence_length: int, tell: Callable[[int, str, str], None], *, chats: bool = False,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.settings, self.engine, self.tokenizer, self.world = settings, engine, tokenizer, world
        self.sequence_length, self.tell, self.chats, self.stopping = sequence_length, tell, chats, stopping

    def after_step(self, record: StepRecord) -> None:
        if not self.settings.every or record.position.step % self.settings.every:
            return
        for text in self.settings.prompts:
            prompt = prompt_for(text, self.tokenizer, chats=self.chats)
            made = self._continue(prompt)
            if made is None:
                return
            if self.world.is_first:
                self.tell(record.position.step, text, prompt.answer(made, self.tokenizer))

    @torch.no_grad()
    def _continue(self, prompt: Prompt) -> list[int] | None:
        """All processes compute the same, for under ZeRO-3 a forward pass is collective. None: left early."""
        made: list[int] = []
        stopped = False
        self.engine.model.eval()
        while len(made) < self.settings.max_new_tokens and not set(made[-1:]) & set(prompt.ends):
            if stopped := self.stopping():
                break
            made.append(self._next(prompt.ids + made))
        self.engine.model.train()
        return None if stopped else made

    def _next(self, ids: list[int]) -> int:
        window = torch.tensor([ids[-self.sequence_length :]], device=self.world.device)
        likeliest = int(self.engine.forward(window)[0, -1].argmax())
        # Rounding may break a tie differently elsewhere, and then one process would stop before another.
        return self.world.first(likeliest)
