"""The state files of a checkpoint that is read: checked on first touch, a bounded number open at once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from checkpoint.format import Damaged
from checkpoint.fragment import read_fragments
from checkpoint.strict import open_plain

MAX_OPEN = 256
"""A process may open 1024 files by default; a thousand ranks' checkpoint has as many."""


class OpenFiles:
    """Positioned reads from the state files of one checkpoint; safe to use from several threads.

    Positioned reads, not a memory map: a file that is cut short meanwhile is an error, not a SIGBUS.
    """

    def __init__(self, folder: Path, files: Sequence[Mapping[str, Any]]) -> None:
        self.folder = folder
        self._expected = {file["name"]: file for file in files}
        self._begins: dict[str, dict[str, int]] = {}
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, name: str) -> None:
        """Check size and header of a file against the manifest, once.

        Raises:
            Damaged: they are not what it says.
        """
        self._opened(name)

    def fill(self, target: memoryview, name: str, key: str, skip: int) -> None:
        """Read bytes of a fragment, from its ``skip``-th on, until ``target`` is full.

        Raises:
            Damaged: the file is not what the manifest says, or ends too early.
        """
        opened = self._opened(name)
        position = self._begins[name][key] + skip
        while target:
            count = os.preadv(opened.number, [target], position)
            if not count:
                raise Damaged("ends too early", where=str(self.folder / name))
            target, position = target[count:], position + count

    def _opened(self, name: str) -> _Descriptor:
        with self._lock:
            if name not in self._open:
                self._open[name] = self._reopen(name)
            self._open.move_to_end(name)
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return self._open[name]

    def _reopen(self, name: str) -> _Descriptor:
        path = self.folder / name
        with open_plain(path) as file:
            if name not in self._begins:
                entries = read_fragments(file, self._expected[name], str(path))
                self._begins[name] = {key: entry.begin for key, entry in entries.items()}
            return _Descriptor(os.dup(file.fileno()))

    def close(self) -> None:
        """Close every file that no thread is reading from."""
        self._open.clear()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Descriptor:
    """An open file, closed when nobody uses it any more: another thread may still read from it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)
