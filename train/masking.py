"""What attention may see: all of a row, or, with ``data.intra_document_mask``, only its own document.

Transformers finds the documents of a packed row in its position ids, which start again at each of them, and
builds the mask of whichever attention is used (transformers/masking_utils.py). The search is replaced here,
as it ends by reading the device: a synchronisation in every forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import masking_utils


def document_numbers(position_ids: torch.Tensor) -> torch.Tensor:
    """The number, in its row, of the document that each token belongs to: int64 [batch, sequence].

    Args:
        position_ids: [batch, sequence], growing by 1 within a document.
    """
    before = position_ids[:, :1] - 1
    return (torch.diff(position_ids, prepend=before) != 1).cumsum(-1)


def logits_of(
    model: nn.Module, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits [batch, sequence, vocabulary] of input_ids [batch, sequence].

    With position_ids [batch, sequence] attention is causal within each document that they count; without, it
    is causal over the row, and the model counts its positions itself.
    """
    # A model without position ids may refuse the very name.
    positions = {} if position_ids is None else {"position_ids": position_ids}
    with attention_over(position_ids):
        # With a cache Transformers would not look for documents.
        return model(input_ids=input_ids, use_cache=False, **positions).logits


@contextlib.contextmanager
def attention_over(position_ids: torch.Tensor | None) -> Iterator[None]:
    """Around a forward pass: attention within the documents of ``position_ids``; None: over whole rows.

    The mask is made even where no row holds a second document, so that a row's numbers do not hang on its
    neighbours in the micro-batch. Without position ids there is nothing to search: the model makes its own.
    """
    search = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = _nothing if position_ids is None else document_numbers
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


def _nothing(_: torch.Tensor) -> None:
    return None
