from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from base.errors import UmbelError
from data.document import Document
from data.tokens.chat import render_chat
from data.tokens.encode import encode
from data.tokens.tokenizer import TEMPLATE, TextTokenizer, load_tokenizer, train_tokenizer

TOKENIZER = train_tokenizer(["hello world, how are you? fine"] * 9, 300, chats=True).for_chats()
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "  hi there"},
    {"role": "user", "content": "how are you?"},
    {"role": "assistant", "content": "fine"},
]
GENERATION = (
    "{% for message in messages %}\n"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}\n"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_END = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ '[' + m.content + ']' }}{% endif %}{% endfor %}"
)
REWRITING = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"


def chat(messages: Any) -> Document:
    return Document("chats.jsonl:3", json.dumps(messages), messages)


def with_template(template: str) -> TextTokenizer:
    return TextTokenizer(TOKENIZER.files | {TEMPLATE: template}, TOKENIZER.special, template)


def learned(tokenizer: TextTokenizer, messages: Any = CHAT) -> str:
    (example,) = encode([chat(messages)], tokenizer)
    assert example.mask is not None
    return tokenizer.decode(example.ids[example.mask].tolist())


def test_only_the_assistants_turns_are_learned() -> None:
    assert learned(TOKENIZER) == "  hi there<|im_end|>\nfine<|im_end|>\n<|endoftext|>"


def test_a_template_that_ends_turns_with_the_eos_token_gets_no_second_one() -> None:
    assert learned(with_template(WITH_END)) == "  hi there<|endoftext|>fine<|endoftext|>"


def test_rendering_equals_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, template in (("chatml", TOKENIZER.chat_template), ("tag", GENERATION), ("end", WITH_END)):
        assert template is not None
        tokenizer = with_template(template)
        tokenizer.save(tmp_path / name)
        theirs = AutoTokenizer.from_pretrained(str(tmp_path / name)).apply_chat_template(CHAT, tokenize=False)
        assert render_chat(chat(CHAT), load_tokenizer(tmp_path / name))[0] == theirs


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        (
            [{"role": "asistant", "content": "x"}],
            "message 1: unknown role 'asistant'; did you mean 'assistant'",
        ),
        ([CHAT[1], {"role": "assistant", "content": ""}], "message 2: the assistant's turn is empty"),
        ([CHAT[1], {"role": "assistant", "content": None}], "message 2: the assistant's turn is empty"),
        ([CHAT[1]], "nothing to learn"),
        ([], "nothing to learn"),
        (["hello"], "message 1: must be an object"),
        ([{"role": "user", "content": 3}, CHAT[2]], "message 1: content must be text"),
    ],
)
def test_chats_that_cannot_be_learned_from_are_refused_by_line(messages: Any, what: str) -> None:
    with pytest.raises(UmbelError) as caught:
        render_chat(chat(messages), TOKENIZER)
    assert str(caught.value).startswith(f"chats.jsonl:3: {what}")


def test_templates_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(UmbelError, match="rewrites the turns"):
        render_chat(chat(CHAT), with_template(REWRITING))
    with pytest.raises(UmbelError, match="only users"):
        render_chat(chat(CHAT), with_template("{{ raise_exception('only users') }}"))
    with pytest.raises(UmbelError, match="refuses the chat"):
        render_chat(chat(CHAT), with_template("{% if %}"))


def test_templates_run_in_a_sandbox() -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UmbelError, match="refuses the chat"):
        render_chat(chat(CHAT), with_template(escape))
