"""In which order a streamed source's documents are read: an endless, seeded shuffle in windows."""

from __future__ import annotations

from data.order.shuffle import shuffled


class DocumentOrder:
    """Position in a source's endless stream of documents to document number, in O(1).

    The documents are cut, in the order of their files, into windows of equal length; each epoch takes the
    windows in another order, and the documents of each window in another order. So a full pass reads every
    file about once, and few files at a time.

    Args:
        rows: how many documents the source has.
        window: about how many of them are shuffled among each other.
    """

    def __init__(self, rows: int, window: int, seed: str) -> None:
        self.rows = rows
        self.windows = -(-rows // window)
        self.window = -(-rows // self.windows) if rows else 0
        self._windows = shuffled(self.windows, f"{seed} windows")
        self._inner = shuffled(self.window, f"{seed} documents")

    @property
    def epoch_length(self) -> int:
        """Positions of one epoch: the documents, and fewer than ``windows`` places that hold none."""
        return self.windows * self.window

    def number(self, position: int) -> int | None:
        """The document at ``position``; None for a place beyond the last window's end."""
        window = self._windows[position // self.window]
        number = window * self.window + self._inner[position]
        return number if number < self.rows else None
