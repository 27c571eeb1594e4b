"""Worker processes for jobs whose results are wanted in order.

A worker holds one end of a pipe. When the other end closes, because the parent is through with it or was
killed, it ends at once. Workers are spawned, not forked: the tokenizer's Rust threads do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from base.errors import RunFailed
from data.rows.work import Done, Job, Tick, work
from data.tokens.tokenizer import TextTokenizer, load_tokenizer

LOOK_AHEAD = 2
"""Jobs per worker that are begun before their turn: bounds what waits on the disk."""

MOST_DEATHS = 3
"""Times that workers may die in succession, with nothing done in between."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Waiting:
    job: Job
    future: Future[Done] | None = None

    def result(self) -> Done:
        assert self.future is not None
        return self.future.result()

    def forget_death(self) -> None:
        """What is done stays done; the rest begins anew."""
        future = self.future
        if future is None or not future.done() or future.cancelled() or future.exception() is not None:
            self.future = None


class Workers:
    """Up to ``count`` processes, begun when there is more than one job; a single one is done here.

    They read the tokenizer from the folder it is saved in. Handed over at their start, it would fill the
    pipe: Python holds that pipe's other end too, and waits for ever for one that was killed before it read.
    """

    def __init__(self, count: int, tokenizer: TextTokenizer, saved: Path) -> None:
        self.count, self._tokenizer, self._saved = count, tokenizer, saved
        self._pool: ProcessPoolExecutor | None = None
        self._leash: Connection | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def one_by_one(self, jobs: Iterable[Job], tick: Tick) -> Iterator[Done]:
        """The jobs' results, each done here when it is asked for; the tokenizer spreads it over the cores."""
        return (work(job, self._tokenizer, tick) for job in jobs)

    def map(self, jobs: Iterable[Job], tick: Tick) -> Iterator[Done]:
        """The jobs' results in their order. ``tick`` is told of those that are done here.

        Raises:
            UmbelError: a job's fault.
            RunFailed: workers are killed again and again.
        """
        todo = iter(jobs)
        ahead = list(islice(todo, 2))
        if self.count == 1 or len(ahead) < 2:
            yield from self.one_by_one(chain(ahead, todo), tick)
            return
        yield from self._in_order(chain(ahead, todo))

    def _in_order(self, jobs: Iterator[Job]) -> Iterator[Done]:
        waiting: deque[_Waiting] = deque()
        deaths = 0
        while True:
            waiting.extend(map(_Waiting, islice(jobs, LOOK_AHEAD * self.count - len(waiting))))
            if not waiting:
                return
            try:
                for each in waiting:
                    each.future = each.future or self._submit(each.job)
                done = waiting[0].result()
            except BrokenProcessPool as error:
                deaths += 1
                if deaths == MOST_DEATHS:
                    raise _killed(waiting[0].job) from error
                self._end()
                for each in waiting:
                    each.forget_death()
                continue
            deaths = 0
            waiting.popleft()
            yield done

    def _submit(self, job: Job) -> Future[Done]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            held, self._leash = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (self._saved, held))
        try:
            return self._pool.submit(_work, job)
        except OSError as error:  # one was killed while it, or another, was being started
            raise BrokenProcessPool("a worker ended before it began") from error

    def _end(self) -> None:
        if self._pool is not None and self._leash is not None:
            self._leash.close()
            self._pool.shutdown(cancel_futures=True)
            self._pool = self._leash = None


def _killed(job: Job) -> RunFailed:
    return RunFailed(
        f"{MOST_DEATHS} times a worker process was killed: is there too little memory?",
        where=job.part.spans[0].file.name,
        fix="start it again with more memory or on fewer cores (taskset): what is finished is kept",
    )


_tokenizer: TextTokenizer | None = None


def _begin(saved: Path, leash: Connection) -> None:
    """First thing in a worker. The cores belong to its siblings; Ctrl-C is for the parent to hear."""
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(leash,), daemon=True).start()
    _tokenizer = load_tokenizer(saved)


def _die_with_parent(leash: Connection) -> None:
    leash.poll(None)
    os._exit(1)


def _work(job: Job) -> Done:
    assert _tokenizer is not None
    return work(job, _tokenizer)
