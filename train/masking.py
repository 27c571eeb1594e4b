"""Rows are whole: attention is causal over all of a row, whatever documents were packed into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import masking_utils


@contextlib.contextmanager
def whole_rows() -> Iterator[None]:
    """Keep Transformers from looking for packed documents in position ids that it made itself.

    There are none to find, and the search reads the device: a synchronisation in every forward pass.
    """
    search = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda _: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search
