"""Streaming: documents are read, tokenized and packed on the way, in lanes that know no rank.

A lane is a slot of the largest global batch. The documents of a source, in `DocumentOrder`, are dealt to the
lanes like cards: lane l of G has those at positions l, l + G, l + 2G…. In each lane every source is a stream
of its own, packed into rows; which source the lane's next row comes from says `GlobalOrder`. All that there
is to remember is where each lane stands in each source: the document counter and the token offset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from base.errors import UmbelError
from data.document import Document, is_held_out
from data.order.document_order import DocumentOrder
from data.order.global_order import GlobalOrder
from data.order.mixing import Numbers
from data.rows.pack import Row
from data.streaming.pieces import Piece, rest, row_of
from data.tokens.encode import Example, encode
from data.tokens.tokenizer import TextTokenizer

Cursors = npt.NDArray[np.int64]
"""Where the lanes stand: int64 [lanes, sources, 2], sources sorted by name. The last axis holds the counter,
in its lane, of the document that the next row begins in, and the token of that document it begins at."""

MOST_IN_VAIN = 100_000
"""Documents in succession that give nothing to learn before a source is called empty."""

DISTANCE = 32
"""Documents of a lane between the one that it reads and the one that it looks ahead for."""

LOOK_EVERY = 8

SLACK = 1.05
"""Lanes read at different speeds: one may be this far ahead of the source's average before its
``max_epochs`` is called exceeded."""


class Documents(Protocol):
    """A source's documents by number (`data.streaming.documents.DocumentStore`)."""

    def get(self, number: int) -> Document | None:
        """None where the row is blank, or a filter leaves it out."""


class Ahead(Protocol):
    """Told what will be read (`data.streaming.look_ahead.LookAhead`)."""

    def expect(self, position: int) -> None: ...

    def check(self, number: int) -> None: ...


@dataclass(frozen=True)
class StreamedSource:
    """A source as the lanes read it; ``key`` is where the config names it, for errors."""

    documents: Documents
    order: DocumentOrder
    max_epochs: float | None
    key: str
    ahead: Ahead | None = None


@dataclass(frozen=True)
class RowMaker:
    """How documents become rows: ``length`` + 1 tokens each where they are packed."""

    tokenizer: TextTokenizer
    length: int
    packing: bool
    held_out: float

    def encode(self, document: Document | None) -> Example | None:
        """The document's tokens; None where there is none to train on."""
        if document is None or is_held_out(document, self.held_out):
            return None
        return encode([document], self.tokenizer)[0]


class LaneReader:
    """Rows of some lanes. Reads forward only; whoever wants to go back opens another one.

    Args:
        order: the global order.
        sources: all of the order's, by name.
        maker: makes the rows.
        lanes: those to be read.
        start: all numbers of the order below it are read already.
        cursors: where the lanes stand then; None where ``start`` is 0.
    """

    def __init__(
        self, order: GlobalOrder, sources: Mapping[str, StreamedSource], maker: RowMaker,
        lanes: Sequence[int], start: int = 0, cursors: Cursors | None = None,
    ) -> None:  # fmt: skip
        self.order, self.sources, self.maker = order, sources, maker
        self.cursors = np.zeros((order.lanes, len(sources), 2), np.int64)
        if cursors is not None:
            self.cursors[list(lanes)] = cursors[list(lanes)]
        self._next = {lane: start + (lane - start) % order.lanes for lane in lanes}
        self._streams: dict[tuple[int, int], LaneStream] = {}

    def read(self, numbers: Numbers) -> list[tuple[str, Row]]:
        """The source and the row of each number of the order. Rows of its lane before it are passed over.

        Raises:
            UmbelError: a file that cannot be read or has changed, a source with nothing to learn, or one
                that is used up beyond its max_epochs.
        """
        sources = self.order.picks(numbers).sources
        return [
            self._read(number, source)
            for number, source in zip(numbers.tolist(), sources.tolist(), strict=True)
        ]

    def pass_to(self, number: int) -> None:
        """Pass over what is left below a number. At the end of a step that is what ``data.skip`` leaves out:
        without it the cursors would not tell whether a lane has passed it yet."""
        for lane in self._next:
            self._pass(lane, number)

    def _read(self, number: int, source: int) -> tuple[str, Row]:
        lane = number % self.order.lanes
        if number < self._next[lane]:
            raise ValueError(f"number {number} is read already")
        self._pass(lane, number)
        self._next[lane] = number + self.order.lanes
        return self.order.sources[source], self._row(lane, source)

    def _pass(self, lane: int, number: int) -> None:
        if self._next[lane] >= number:
            return
        passed = np.arange(self._next[lane], number, self.order.lanes)
        for source in self.order.picks(passed).sources.tolist():
            self._row(lane, source)
            self._next[lane] += self.order.lanes

    def _row(self, lane: int, source: int) -> Row:
        cursor = self.cursors[lane, source]
        stream = self._streams.get((lane, source))
        if stream is None:
            counter, offset = cursor.tolist()
            read = self.sources[self.order.sources[source]]
            stream = LaneStream(read, self.maker, lane, self.order.lanes, counter, offset)
            self._streams[lane, source] = stream
        row = stream.row()
        cursor[:] = stream.cursor
        return row


class LaneStream:
    """The documents of one source in one lane, packed into rows."""

    def __init__(
        self, source: StreamedSource, maker: RowMaker, lane: int, lanes: int, counter: int, offset: int
    ) -> None:
        self.source, self.maker, self.lane, self.lanes = source, maker, lane, lanes
        self._counter, self._offset = counter, offset  # of the next document to be read
        self._pieces: deque[Piece] = deque()

    @property
    def cursor(self) -> tuple[int, int]:
        """The document and token that the next row begins at."""
        if self._pieces:
            return self._pieces[0].counter, self._pieces[0].offset
        return self._counter, self._offset

    def row(self) -> Row:
        """The next row that has something to learn."""
        vain = 0
        while vain < MOST_IN_VAIN:
            row = self._packed() if self.maker.packing else self._single()
            if row.has_targets:
                return row
            vain += len(row.doc_ids)
        raise self._empty()

    def _packed(self) -> Row:
        """``length`` + 1 tokens; the last one stays, to be the first of the next row."""
        have = sum(len(piece.example.ids) for piece in self._pieces)
        while have <= self.maker.length:
            self._pieces.append(self._read())
            have += len(self._pieces[-1].example.ids)
        row = row_of([piece.example for piece in self._pieces], self.maker.length + 1)
        drop = self.maker.length
        while drop >= len(self._pieces[0].example.ids):
            drop -= len(self._pieces.popleft().example.ids)
        self._pieces[0] = rest(self._pieces[0], drop)
        return row

    def _single(self) -> Row:
        return row_of([self._read().example], self.maker.length + 1)

    def _read(self) -> Piece:
        """The next document of the lane that there is, from the offset on."""
        for _ in range(MOST_IN_VAIN):
            position = self.lane + self._counter * self.lanes
            self._check_epochs(position)
            example = self.maker.encode(self._document(position))
            counter, offset = self._counter, self._offset
            self._counter, self._offset = counter + 1, 0
            if example is not None:
                self._check_offset(offset, example)
                return rest(Piece(counter, 0, example), offset)
        raise self._empty()

    def _document(self, position: int) -> Document | None:
        number, ahead = self.source.order.number(position), self.source.ahead
        if ahead is not None and self._counter % LOOK_EVERY == 0:
            ahead.expect(position + DISTANCE * self.lanes)
        if number is None:
            return None
        if ahead is not None:
            ahead.check(number)
        return self.source.documents.get(number)

    def _check_epochs(self, position: int) -> None:
        most, epochs = self.source.max_epochs, (position - self.lane) / self.source.order.epoch_length
        if most is not None and epochs > most * SLACK:
            raise UmbelError(
                f"is used up: read {epochs:.2f} times, and max_epochs is {most:g}",
                where=self.source.key,
                fix="lower its weight, raise its max_epochs, or end the run here",
            )

    def _check_offset(self, offset: int, example: Example) -> None:
        if offset >= len(example.ids):
            raise UmbelError(
                f"document {example.document} has {len(example.ids)} tokens now, and the run goes on at its "
                f"token {offset}",
                where=self.source.key,
                fix="bring back the tokenizer, and the libraries, that the run began with",
            )

    def _empty(self) -> UmbelError:
        return UmbelError(
            f"gave nothing to learn in {MOST_IN_VAIN} documents running",
            where=self.source.key,
            fix="check its field and its filters",
        )
