"""Documents to tokens, many at once: the Rust tokenizer spreads a batch over all cores."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.document import Document
from data.tokens.chat import Span, render_chat
from data.tokens.tokenizer import TextTokenizer

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """The tokens of one document; ``mask`` marks those to be learned (None: all).

    ``document`` is the document's number in its source.
    """

    ids: Ids
    mask: Mask | None = None
    document: int = 0


def encode(documents: Sequence[Document], tokenizer: TextTokenizer) -> list[Example]:
    """Tokenize documents; each ends with the end-of-text token.

    Raises:
        UmbelError: a chat that cannot be learned from (see `data.tokens.chat`).
    """
    if documents and documents[0].messages is not None:
        return _encode_chats(documents, tokenizer)
    # The tokenizer's own special tokens (a leading <s>) belong to a text as much as its words do.
    encodings = tokenizer.backend.encode_batch_fast([document.text for document in documents])
    return [
        Example(_ended(encoding.ids, tokenizer.eos_id), None, document.number)
        for encoding, document in zip(encodings, documents, strict=True)
    ]


def _ended(ids: list[int], eos_id: int) -> Ids:
    if not ids or ids[-1] != eos_id:
        ids.append(eos_id)
    # Twice as fast as numpy's own reading of a list.
    return np.frombuffer(array("i", ids), np.int32)


def _encode_chats(documents: Sequence[Document], tokenizer: TextTokenizer) -> list[Example]:
    rendered = [render_chat(document, tokenizer) for document in documents]
    encodings = tokenizer.backend.encode_batch([text for text, _ in rendered], add_special_tokens=False)
    examples = []
    for document, encoding, (_, spans) in zip(documents, encodings, rendered, strict=True):
        ids = np.array(encoding.ids, np.int32)
        starts = np.array([start for start, _ in encoding.offsets], np.int64)
        ids, mask = _ended_chat(ids, _inside(starts, spans), starts, spans, tokenizer)
        examples.append(Example(ids, mask, document.number))
    return examples


def _inside(starts: npt.NDArray[np.int64], spans: list[Span]) -> Mask:
    mask = np.zeros(len(starts), bool)
    for begin, end in spans:
        mask |= (starts >= begin) & (starts < end)
    return mask


def _ended_chat(
    ids: Ids, mask: Mask, starts: npt.NDArray[np.int64], spans: list[Span], tokenizer: TextTokenizer
) -> tuple[Ids, Mask]:
    """Add the end-of-text token, to be learned, unless the template put one into the last turn."""
    last_turn = ids[starts >= spans[-1][0]]
    if tokenizer.eos_id in last_turn:
        return ids, mask
    return np.append(ids, np.int32(tokenizer.eos_id)), np.append(mask, True)
