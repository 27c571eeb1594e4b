"""Continuations: what a run's model, or any Transformers folder, makes of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel

from base.errors import UmbelError
from configs.schema import Model
from data.tokens.tokenizer import TextTokenizer, load_tokenizer
from train.architecture import model_config
from train.initialize import preserved_random_state
from train.model import build_model
from train.prompt import Prompt, prompt_for
from train.quiet import quiet
from train.weights import load_model


def generate(
    run: str | Path,
    prompt: str,
    max_new_tokens: int = 64,
    step: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Let a model continue ``prompt``, or answer it where the model was trained on chats.

    Args:
        run: name or folder of a run, or a Transformers folder, which answers if it has a chat template.
        step: of the run's checkpoint; the newest by default.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        seed: of the draws: same seed, same text.

    Raises:
        UmbelError: no such model, an adapter alone, no fast tokenizer, or a prompt that fills the model's
            positions.
    """
    _check(max_new_tokens, temperature)
    quiet()
    speaker = _speaker(run, step)
    asked = prompt_for(prompt, speaker.tokenizer, chats=speaker.chats)
    ids = continue_ids(speaker.model, asked, max_new_tokens, temperature, seed)
    return asked.answer(ids, speaker.tokenizer)


def continue_ids(
    model: PreTrainedModel, prompt: Prompt, max_new_tokens: int, temperature: float, seed: int
) -> list[int]:
    """The generated ids alone, on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    room = _room(model, prompt)
    settings = GenerationConfig(
        max_new_tokens=min(max_new_tokens, room),
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
        eos_token_id=prompt.ends,
        pad_token_id=prompt.ends[0],
        use_cache=True,
    )
    # The model's own defaults (a top_k, a repetition penalty) would be merged in where ours are unset.
    model.generation_config = GenerationConfig()
    inputs = torch.tensor([prompt.ids], device=device)
    with preserved_random_state():
        torch.manual_seed(seed)
        made = model.to(device).generate(
            inputs, attention_mask=torch.ones_like(inputs), generation_config=settings
        )
    return made[0, len(prompt.ids) :].tolist()


class _Speaker(NamedTuple):
    model: PreTrainedModel
    tokenizer: TextTokenizer
    chats: bool


def _speaker(run: str | Path, step: int | None) -> _Speaker:
    folder = Path(run)
    if (folder / "adapter_config.json").is_file():
        fix = "export the run merged, or name the run itself"
        raise UmbelError("is an adapter without its base", where=str(run), fix=fix)
    if (folder / "run.yaml").is_file() or not (folder / "config.json").is_file():
        loaded = load_model(run, step)
        return _Speaker(loaded.model, loaded.tokenizer, loaded.chats)
    if step is not None:
        raise UmbelError("has no steps: it is a Transformers folder", where=str(run), fix="leave out --step")
    settings = Model(pretrained=str(folder.resolve()))
    model = build_model(settings, seed=0).eval()
    model.config.use_cache = getattr(model_config(settings), "use_cache", True)
    tokenizer = load_tokenizer(folder)
    return _Speaker(model, tokenizer, tokenizer.chat_template is not None)


def _room(model: PreTrainedModel, prompt: Prompt) -> int:
    """How many positions the model has left after the prompt."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = longest - len(prompt.ids) if longest else 1 << 30
    if room < 1:
        what = f"{len(prompt.ids)} tokens leave no room in the model's {longest} positions"
        raise UmbelError(what, where="prompt", fix="shorten it")
    return room


def _check(max_new_tokens: int, temperature: float) -> None:
    if max_new_tokens < 1:
        raise UmbelError(f"must be at least 1, not {max_new_tokens}", where="--max-new-tokens")
    if not 0 <= temperature < float("inf"):
        raise UmbelError(f"must be a number from 0 on, not {temperature}", where="--temperature")
