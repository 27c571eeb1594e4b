from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from checkpoint.background import BackgroundWriter
from support.small_disk import SmallDisk, small_disk


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def new_writer() -> Iterator[Callable[..., BackgroundWriter]]:
    """Makes background writers, and ends them with the test."""
    with ExitStack() as at_end:

        def new(*keep: int) -> BackgroundWriter:
            writer = BackgroundWriter(keep)
            at_end.callback(writer.close)
            return writer

        yield new


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Callable[[str], SmallDisk]]:
    """Mounts a small file system, and unmounts it with the test."""
    with ExitStack() as at_end:
        yield lambda options: at_end.enter_context(small_disk(tmp_path / "disk", options))
