"""Fetch what the lanes will need soon, so that no step waits for a download."""

from __future__ import annotations

import math
import threading
import time

from base.errors import UmbelError
from data.order.document_order import DocumentOrder
from data.streaming.documents import DocumentStore

AT_A_TIME = 4
"""Bundles."""

FRESH = 60.0
"""Seconds after which a failure may be over."""

REMEMBERED = 1024


class LookAhead:
    """Opens the bundles of a source in which documents to come lie, in threads of its own.

    What goes wrong on the way ahead is told when the reading comes to it, if it does.
    """

    def __init__(self, documents: DocumentStore, order: DocumentOrder) -> None:
        self._documents, self._order = documents, order
        self._free = threading.BoundedSemaphore(AT_A_TIME)
        self._seen: dict[int, None] = {}  # the bundles opened last, in order
        self._failed: dict[int, tuple[float, UmbelError]] = {}

    def expect(self, position: int) -> None:
        """Have the document at a position of the order at hand soon. Does not wait."""
        number = self._order.number(position)
        if number is None or (bundle := self._documents.bundle_of(number)) in self._seen:
            return
        if self._free.acquire(blocking=False):
            self._seen[bundle] = None
            if len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
            threading.Thread(target=self._open, args=(number,), daemon=True).start()

    def check(self, number: int) -> None:
        """Raise what went wrong with a document's bundle a moment ago: it has been tried long enough."""
        when, error = self._failed.pop(self._documents.bundle_of(number), (-math.inf, None))
        if error is not None and time.monotonic() - when < FRESH:
            raise error

    def _open(self, number: int) -> None:
        try:
            self._documents.get(number)
        except UmbelError as error:
            self._failed[self._documents.bundle_of(number)] = time.monotonic(), error
        finally:
            self._free.release()
