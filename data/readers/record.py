"""From a record to a document's text, or to its messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from base.errors import UmbelError
from data.document import Document, Message
from data.files import Reading
from data.readers.faults import kind_name
from data.readers.selection import MESSAGES, Record
from data.readers.template import render

Make = Callable[[Record, str, int], Document | None]
"""(record, where, number) to a document; None where there is no text."""


def maker(reading: Reading) -> Make:
    """How the reading's documents are made. A record that holds no text, or null, is none."""
    if reading.format == "messages":
        return _chat
    if reading.template is not None:
        return lambda record, where, number: _rendered(reading.template or "", record, where, number)
    return lambda record, where, number: _field(reading.field, record, where, number)


def chat(messages: list[Message], where: str, number: int) -> Document:
    """A chat, with its canonical JSON as text."""
    text = json.dumps(messages, sort_keys=True, ensure_ascii=False)
    return Document(where, encodable(text, where), messages, number)


def encodable(text: str, where: str) -> str:
    """JSON can spell half a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UmbelError(f"is not valid Unicode (a lone surrogate at {error.start})", where=where) from error
    return text


def _text(text: str, where: str, number: int) -> Document | None:
    if not text or text.isspace():
        return None
    return Document(where, encodable(text, where), None, number)


def _field(field: str, record: Record, where: str, number: int) -> Document | None:
    value = record[field]
    if value is None:
        return None
    if not isinstance(value, str):
        raise UmbelError(f"'{field}' must be text, not {kind_name(value)}", where=where)
    return _text(value, where, number)


def _rendered(template: str, record: Record, where: str, number: int) -> Document | None:
    try:
        return _text(render(template, record), where, number)
    except ValueError as error:
        raise UmbelError(str(error), where=where) from error


def _chat(record: Record, where: str, number: int) -> Document | None:
    value = record[MESSAGES]
    if value is None:
        return None
    if not isinstance(value, list):
        raise UmbelError(f"'{MESSAGES}' must be a list of messages, not {kind_name(value)}", where=where)
    try:
        return chat([_without_nulls(message) for message in value], where, number)
    except TypeError as error:
        raise UmbelError(f"'{MESSAGES}' is no list of messages ({error})", where=where) from error


def _without_nulls(message: Any) -> Any:
    """Parquet fills every key that any message of the column has with null."""
    if not isinstance(message, dict):
        return message
    return {key: item for key, item in message.items() if item is not None}
