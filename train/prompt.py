"""What a model is asked, as tokens, and how it says that it has finished."""

from __future__ import annotations

from typing import NamedTuple

from data.document import Document
from data.manifest import Manifest
from data.tokens.chat import render_chat
from data.tokens.tokenizer import TextTokenizer

_ANSWER = "ANSWER"


class Prompt(NamedTuple):
    """``ids`` are continued until one of ``ends``; a chat's answer may also end with the text ``marker``."""

    ids: list[int]
    ends: list[int]
    marker: str

    def answer(self, ids: list[int], tokenizer: TextTokenizer) -> str:
        """The text of generated ids, without what ends it."""
        while ids and ids[-1] in self.ends:
            ids = ids[:-1]
        text = tokenizer.decode(ids)
        return text.partition(self.marker)[0] if self.marker else text


def text_prompt(text: str, tokenizer: TextTokenizer) -> Prompt:
    """A text to go on with. An empty one begins as every document does: after the end of another."""
    ids = list(tokenizer.backend.encode(text).ids)
    if ids and ids[-1] == tokenizer.eos_id:  # some tokenizers end every text
        ids.pop()
    return Prompt(ids or [tokenizer.eos_id], [tokenizer.eos_id], "")


def chat_prompt(text: str, tokenizer: TextTokenizer) -> Prompt:
    """A user's turn to answer, written by the tokenizer's chat template as the training data was.

    Raises:
        UmbelError: the template refuses the chat.
    """
    before, marker = _turn(text, tokenizer)
    ids = tokenizer.backend.encode(before, add_special_tokens=False).ids
    return Prompt(list(ids), end_ids(tokenizer, marker), marker)


def prompt_for(text: str, tokenizer: TextTokenizer, *, chats: bool) -> Prompt:
    return chat_prompt(text, tokenizer) if chats else text_prompt(text, tokenizer)


def turn_marker(tokenizer: TextTokenizer) -> str:
    """What the chat template writes after an assistant's turn, such as ``<|im_end|>``."""
    return _turn("", tokenizer)[1]


def end_ids(tokenizer: TextTokenizer, marker: str = "") -> list[int]:
    """The ids that end a continuation: end of text, and the turn marker where it is a token of its own."""
    marked = tokenizer.backend.token_to_id(marker) if marker else None
    return [tokenizer.eos_id] if marked in (None, tokenizer.eos_id) else [tokenizer.eos_id, marked]


def trained_on_chats(data: Manifest) -> bool:
    """Whether the prepared data that the manifest describes are chats."""
    return any(source["format"] == "messages" for source in data["sources"].values())


def _turn(question: str, tokenizer: TextTokenizer) -> tuple[str, str]:
    """What the template writes before and after an answer to ``question``."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": _ANSWER}]
    text, [(begin, end)] = render_chat(Document("prompt", "", messages), tokenizer)
    before, _, after = text[begin:end].rpartition(_ANSWER)
    return text[:begin] + before, after.strip()
