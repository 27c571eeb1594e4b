"""Commands that print one answer keep the libraries' own talk out of it."""

from __future__ import annotations

import os

import torch
from transformers.utils import logging


def quiet() -> None:
    """Turn off Transformers' progress bars and hints, and what DeepSpeed says where there is no GPU."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
