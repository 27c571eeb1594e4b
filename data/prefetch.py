"""Load ahead in a background thread, and know how long the caller had to wait."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterate over ``load(key)`` for each key, at most ``depth`` results ahead.

    ``data_wait`` holds the seconds the last ``next`` waited. An exception in ``load`` is raised by the
    ``next`` that would have had its result. Close it, or use it as a context manager, to end the thread;
    ``release`` is called then, and must let a ``load`` that waits for something end.
    """

    def __init__(
        self,
        load: Callable[[int], T],
        keys: Iterable[int],
        depth: int = 2,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.data_wait = 0.0
        self._load, self._keys, self._release = load, iter(keys), release
        self._results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="data-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        start = time.perf_counter()
        result, error = self._results.get()
        self.data_wait = time.perf_counter() - start
        if error is not None:
            self._closed.set()
            raise error
        return result  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread. Later calls of ``next`` find nothing more."""
        self._closed.set()
        self._release()
        self._thread.join()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            for key in self._keys:
                self._put((self._load(key), None))
                if self._closed.is_set():
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # handed to the caller, whatever it is
            self._put((None, error))

    def _put(self, item: tuple[T | None, BaseException | None]) -> None:
        while not self._closed.is_set():
            try:
                self._results.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
