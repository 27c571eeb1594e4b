"""Texts to rows of tokens on the way, for the tools that leave this to their user: the same for all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers

from peers import Rows

AT_A_TIME = 16
"""Texts of a call; more do not make the tokenizer faster."""


def ids_of(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[np.ndarray]:
    return [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch_fast(texts)]


def pack(texts: Iterable[str], tokenizer: Path, length: int) -> Iterator[Rows]:
    """Texts end to end, each with its end-of-text token, cut into rows."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend = tokenizers.Tokenizer.from_file(str(tokenizer))
    end, waiting = np.array([backend.token_to_id("<|endoftext|>")], np.int32), np.empty(0, np.int32)
    texts = iter(texts)
    while batch := list(islice(texts, AT_A_TIME)):
        waiting = np.concatenate([waiting, *(part for ids in ids_of(backend, batch) for part in (ids, end))])
        whole = len(waiting) // length * length
        yield from waiting[:whole].reshape(-1, length)
        waiting = waiting[whole:]
