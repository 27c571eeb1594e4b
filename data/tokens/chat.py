"""Chats as text, and which of it the model should learn: what the assistant says, and nothing else."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from base.errors import UmbelError, did_you_mean
from data.document import Document, Message
from data.tokens.tokenizer import TextTokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
Span = tuple[int, int]


def render_chat(document: Document, tokenizer: TextTokenizer) -> tuple[str, list[Span]]:
    """The chat as the template writes it, and the character spans of the assistant's turns.

    A span begins after the template's generation prompt, where generation would begin, and ends with the
    turn, its end marker included. Found by rendering every prefix of the chat: no template needs to know.

    Raises:
        UmbelError: an unknown role, an empty assistant turn, no assistant turn at all, or a template that
            refuses the chat or rewrites earlier turns.
    """
    messages = _checked(document)
    whole = _render(messages, document, tokenizer)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(messages[:index], document, tokenizer, add_generation_prompt=True)
            after = _render(messages[: index + 1], document, tokenizer)
            if not after.startswith(before):
                before = _render(messages[:index], document, tokenizer)
            if not (whole.startswith(after) and after.startswith(before)):
                raise UmbelError(
                    f"the chat template rewrites the turns before message {index + 1}",
                    where=document.where,
                    fix="use a tokenizer whose chat template writes turn after turn",
                )
            spans.append((len(before), len(after)))
    return whole, spans


def _checked(document: Document) -> list[Message]:
    messages = document.messages or []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message:
            raise _fault(document, number, 'must be an object like {"role": …, "content": …}')
        role, content = message["role"], message.get("content")
        if role not in ROLES:
            raise _fault(document, number, f"unknown role {role!r}", did_you_mean(str(role), ROLES))
        if role == "assistant" and not content and not message.get("tool_calls"):
            raise _fault(document, number, "the assistant's turn is empty", "fill it or drop the chat")
        if content is not None and not isinstance(content, str | list):
            raise _fault(document, number, "content must be text")
    if not any(message["role"] == "assistant" for message in messages):
        raise UmbelError(
            "nothing to learn: the chat has no assistant turn", where=document.where, fix="drop the chat"
        )
    return messages


def _fault(document: Document, number: int, what: str, fix: str | None = None) -> UmbelError:
    return UmbelError(f"message {number}: {what}", where=document.where, fix=fix)


def _render(
    messages: list[Message],
    document: Document,
    tokenizer: TextTokenizer,
    *,
    add_generation_prompt: bool = False,
) -> str:
    if not messages and not add_generation_prompt:
        return ""
    from jinja2 import TemplateError

    try:
        template = _compiled(tokenizer.chat_template or "")
        return str(
            template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **tokenizer.special
            )
        )
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        if add_generation_prompt and not messages:
            # Some templates refuse to start with nothing; then the span begins at the turn's header.
            return ""
        raise UmbelError(f"the chat template refuses the chat ({error})", where=document.where) from error


@lru_cache(maxsize=4)
def _compiled(source: str) -> Any:
    """Templates come from outside: they run in jinja2's sandbox, set up as Transformers does.

    ``strftime_now`` is left out on purpose: templates then use a fixed date, and equal chats stay equal.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    # Transformers' own tag; where the turns lie is found here without it.
    source = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", source)
    source = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", source)
    return environment.from_string(source)
