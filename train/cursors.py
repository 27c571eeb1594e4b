"""Where the lanes of a streamed run stand, in a checkpoint: one small array, stored as a buffer is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from base.errors import UmbelError
from checkpoint.folders import steps
from checkpoint.format import BUFFER
from checkpoint.reader import StateReader
from data.streaming.lanes import Cursors

NAME = "data.cursors"


def read_cursors(reader: StateReader, shape: tuple[int, ...]) -> Cursors:
    """The lanes' cursors, as saved.

    Raises:
        UmbelError: there are none, or of other lanes or sources than ``shape`` says.
    """
    cursors = reader.read(NAME, BUFFER).view(np.int64)
    if reader.shape(NAME) != shape or (cursors < 0).any():
        raise UmbelError(
            f"holds the cursors of {reader.shape(NAME)} lanes, sources and numbers, not of {shape}",
            where=str(reader.folder),
            fix="go on with the batch and the sources it began with",
        )
    return cursors.reshape(shape)


def nearest_cursors(checkpoints: Path, step: int, shape: tuple[int, ...]) -> tuple[int, Cursors | None]:
    """The last checkpoint's step up to ``step``, and the cursors in it; 0 and None where there is none."""
    for saved, folder in steps(checkpoints).items():
        if saved <= step:
            with StateReader(folder) as reader:
                return saved, read_cursors(reader, shape)
    return 0, None
