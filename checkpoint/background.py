"""Writing beside the training: a process that is handed memory, and tells when it is on the disk."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Condition, Thread

from base.errors import RunFailed
from checkpoint.arena import Arena
from checkpoint.disk import UNTOUCHED
from checkpoint.job import Outcome, SaveJob
from checkpoint.messages import encode_job
from checkpoint.writer_process import WriterProcess
from checkpoint.writing import SIGNALS, failed, one_line

ENDING_SECONDS = 5
"""A killed process ends once the disk answers it; a disk that hangs must not hold the worker, too."""


class BackgroundWriter:
    """The process that writes this worker's share of each checkpoint, and the memory shared with it.

    The process starts with the first job. It lives no longer than the worker, however that ends; if it dies
    itself, the save in hand has failed, and the next one has a new process.

    Args:
        keep: descriptors the process holds open while it lives (the run's lock). They stay the caller's, who
            leaves them open as long as this object is used.
    """

    def __init__(self, keep: Sequence[int] = ()) -> None:
        self._keep = tuple(keep)
        self._arena = Arena()
        self._process: WriterProcess | None = None
        self._attendant: Thread | None = None
        self._jobs: SimpleQueue[tuple[SaveJob, bytes] | None] = SimpleQueue()
        self._changed = Condition()
        self._busy = self._closed = False
        self._outcome: Outcome | None = None
        self._aborted: str | None = None

    def arena(self, nbytes: int) -> memoryview:
        """At least so many writable bytes, from a page's start on, which the process sees too.

        Bytes, and views given before, stay as they are when it grows.

        Raises:
            RunFailed: the host has not that much memory.
            ValueError: while a job is in hand.
        """
        with self._changed:
            self._refuse_if_taken()
            self._arena.grow(nbytes)
            return self._arena.view()

    def submit(self, job: SaveJob) -> None:
        """Have a job written; its slots must stay as they are until its outcome is there. From any thread.

        Raises:
            ValueError: while another one is in hand, or after :meth:`close`.
            TypeError: a fact that JSON does not know.
        """
        line = encode_job(job)
        with self._changed:
            self._refuse_if_taken()
            self._busy, self._aborted = True, None
            if self._attendant is None:
                self._attendant = Thread(target=self._attend, name="checkpoint-writer", daemon=True)
                self._attendant.start()
        self._jobs.put((job, line))

    @property
    def busy(self) -> bool:
        """A job was submitted and its outcome has been neither polled nor waited for."""
        return self._busy

    def poll(self) -> Outcome | None:
        """The outcome of the job in hand, if it is there. Never blocks."""
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """The outcome of the job in hand; None if there is no job, or not within ``timeout`` seconds."""
        with self._changed:
            if self._busy:
                self._changed.wait_for(lambda: self._outcome is not None, timeout)
            outcome, self._outcome = self._outcome, None
            self._busy = self._busy and outcome is None
            return outcome

    def abort(self, error: str) -> None:
        """End the job in hand, which cannot become whole: another rank's share will not come.

        For when that rank could not leave word on the disk. The outcome says ``error``, unless the job was
        done before. Does nothing without a job.
        """
        with self._changed:
            if self._busy and self._outcome is None:
                self._aborted = error
                if self._process is not None:
                    self._process.kill()

    def close(self) -> None:
        """End the process, in the middle of a job if need be. Harmless when repeated."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            if self._process is not None:
                self._process.kill()
        self._jobs.put(None)
        if self._attendant is not None:
            self._attendant.join(ENDING_SECONDS)
        self._arena.close()

    def _refuse_if_taken(self) -> None:
        if self._closed:
            raise ValueError("the writer is closed")
        if self._busy:
            raise ValueError("a save is being written")

    def _attend(self) -> None:
        """Speak with the process, on a thread of its own.

        To the kernel the thread that started a process is its parent, so this one stays.
        """
        # The process inherits this, and so there is no moment at which they would end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while (task := self._jobs.get()) is not None:
            try:
                outcome = self._write(*task)
            except Exception as error:  # whoever waits must hear of it
                traceback.print_exc()
                outcome = Outcome(task[0].step, error=one_line(error))
            with self._changed:
                self._outcome = outcome
                self._changed.notify_all()
        if self._process is not None:
            self._process.death()

    def _write(self, job: SaveJob, line: bytes) -> Outcome:
        began = time.monotonic()
        if self._process is not None and self._process.is_lost:  # it died of no job
            self._process.death()
            self._process = None
        try:
            process = self._process or WriterProcess(self._arena.descriptor, self._keep)
        except OSError as error:
            return self._failed(job, f"could not be started ({error.strerror})", began)
        with self._changed:
            self._process = process
            if self._closed or self._aborted:
                process.kill()
        outcome = process.ask(line)
        if outcome is None:
            outcome = self._failed(job, process.death(), began)
            self._process = None
        return outcome

    def _failed(self, job: SaveJob, fate: str, began: float) -> Outcome:
        fate = "was ended by its worker" if self._closed else fate
        error = RunFailed(
            f"the process that writes checkpoints {fate}", where=str(job.checkpoints), fix=UNTOUCHED
        )
        outcome = failed(job, self._aborted or str(error), error.exit_code)
        return outcome._replace(seconds=time.monotonic() - began)
