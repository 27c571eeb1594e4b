"""The process that writes checkpoints, as the worker beside it sees it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from checkpoint.job import Outcome
from checkpoint.messages import decode_outcome

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""It computes nothing: numpy, which its imports need, makes no threads."""


class WriterProcess:
    """A running ``checkpoint.writing``.

    The kernel kills it when the *thread* that made this object ends.

    Args:
        arena: descriptor of the shared memory.
        keep: descriptors it holds open while it lives.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, arena: int, keep: Sequence[int]) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            numbers = theirs.fileno(), arena, os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "checkpoint.writing", *map(str, numbers)],
                env=os.environ | ONE_THREAD,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), arena, *keep),
            )
        self._answers = self._channel.makefile("rb")
        self._killed = False
        self.pid = self._process.pid

    def ask(self, line: bytes) -> Outcome | None:
        """Have a job done; None if the process dies of it. Waits."""
        with suppress(ConnectionError):
            self._channel.sendall(line)
            answer = self._answers.readline()
            if answer.endswith(b"\n"):
                return decode_outcome(answer)
        return None

    @property
    def is_lost(self) -> bool:
        """It is dead, or will be at once."""
        return self._killed or self._process.poll() is not None

    def kill(self) -> None:
        self._killed = True
        self._process.kill()

    def death(self) -> str:
        """How it ended, in words. Waits for the end."""
        self._answers.close()
        self._channel.close()
        code = self._process.wait()
        if code >= 0:
            return f"ended with code {code}"
        hint = " (is the host short of memory?)" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"
