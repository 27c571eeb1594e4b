"""The processes that stream for a rank, as the rank sees them: rows by number, like any other reader.

Each has a part of the rank's lanes (`data.streaming.feeder`). It works as far ahead as its pipe holds. When
one is killed, another takes its place where the last step that arrived ended: nobody sees a difference.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from base.errors import UmbelError
from configs.plain import to_dict
from data.order.mixing import Numbers
from data.places.retry import BadFile
from data.rows.pack import Row
from data.streaming.feeder import decode_row
from data.streaming.lanes import Cursors

if TYPE_CHECKING:
    from data.stream import BatchStream, Share

logger = logging.getLogger("umbel.data")

RESTARTS = 3
"""How often a process may die without having delivered a step before the stream gives up."""

PIPE_BYTES = 1 << 20
"""How far ahead of its rank a process may work, in bytes of rows."""


class Feeders:
    """A rank's rows, made by ``data.workers`` processes. Close it to end them.

    Args:
        stream: of the run.
        steps: that will be read, in order.
        share: the rank's.
        cursors: after the step before the first.
    """

    def __init__(self, stream: BatchStream, steps: range, share: Share, cursors: Cursors | None) -> None:
        lanes = [lane for lane in range(stream.order.lanes) if share.owns(lane)]
        count = min(stream.data.workers, len(lanes))
        self.cursors: Cursors = np.zeros((stream.order.lanes, len(stream.order.sources), 2), np.int64)
        if cursors is not None:
            self.cursors[lanes] = cursors[lanes]
        self._closed = False
        self._feeders = [Feeder(self, stream, steps, share, lanes[index::count]) for index in range(count)]
        self._of = {lane: feeder for feeder in self._feeders for lane in feeder.lanes}
        self._lanes = stream.order.lanes

    def read(self, numbers: Numbers) -> list[tuple[str, Row]]:
        """The source and the row of each number of the order; waits until they are made.

        Raises:
            UmbelError: what went wrong in the process, or that it dies again and again.
        """
        return [self._of[number % self._lanes].read(number) for number in numbers.tolist()]

    def pass_to(self, number: int) -> None:
        """Wait for every process at the end of a step. One whose lanes had no rows in it was not heard of
        yet, and may have passed a skipped range."""
        for feeder in self._feeders:
            feeder.finish(number)

    def close(self) -> None:
        """End the processes."""
        self._closed = True
        for feeder in self._feeders:
            feeder.kill()

    @property
    def is_closed(self) -> bool:
        return self._closed


class Feeder:
    """One process and what it has delivered."""

    def __init__(
        self, owner: Feeders, stream: BatchStream, steps: range, share: Share, lanes: Sequence[int]
    ) -> None:
        self.lanes = list(lanes)
        self._owner, self._stream, self._steps, self._share = owner, stream, steps, share
        self._rows: dict[int, tuple[str, Row]] = {}
        self._deaths = 0
        self._start()

    def read(self, number: int) -> tuple[str, Row]:
        while number not in self._rows:
            self._receive()
        return self._rows.pop(number)

    def finish(self, number: int) -> None:
        """Take in the steps that end at a number of the order, or before."""
        while self._steps and self._stream.first_number(self._steps.start + 1) <= number:
            self._receive()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "data.streaming.feeder"]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, pipesize=PIPE_BYTES
        )
        if self._owner.is_closed:  # meanwhile: it has killed the one before
            self._process.kill()
        self._reader: pa.RecordBatchStreamReader | None = None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead already: the first read finds out
            self._process.stdin.write(json.dumps(self._task()).encode())
            self._process.stdin.close()

    def _task(self) -> dict[str, Any]:
        return {
            "config": to_dict(self._stream.config),
            "folder": str(self._stream.prepared.folder),
            "left_out": self._stream.left_out,
            "steps": [self._steps.start, self._steps.stop],
            "share": list(self._share),
            "lanes": self.lanes,
            "cursors": self._owner.cursors[self.lanes].tolist(),
        }

    def _receive(self) -> None:
        """Take one step's rows in, and where its lanes stand after it."""
        try:
            if self._reader is None:
                self._reader = pa.ipc.open_stream(self._process.stdout)
            batch, facts = self._reader.read_next_batch_with_custom_metadata()
        except (pa.ArrowInvalid, OSError, StopIteration):
            self._died()
            return
        if error := facts.get(b"error"):
            raise (BadFile if facts[b"kind"] else UmbelError)(**json.loads(error))
        for index in range(batch.num_rows):
            number, source, row = decode_row(batch, index)
            self._rows[number] = source, row
        moved = np.frombuffer(facts[b"cursors"], np.int64)
        self._owner.cursors[self.lanes] = moved.reshape(len(self.lanes), -1, 2)
        self._steps, self._deaths = self._steps[1:], 0

    def _died(self) -> None:
        code = self._process.wait()
        self._deaths += 1
        if self._owner.is_closed or self._deaths > RESTARTS:
            raise UmbelError(
                f"a process that reads the data ended {self._deaths} times at step {self._steps.start} "
                f"(exit code {code})",
                where="data.workers",
                fix="look for its traceback in this rank's log; 0 reads in the worker itself",
            )
        logger.warning(
            "a process that reads the data ended (exit code %d); another goes on from step %d",
            code,
            self._steps.start,
        )
        self._start()
