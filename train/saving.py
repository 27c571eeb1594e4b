"""From a live engine to a checkpoint: copied beside the steps, handed over, told of when it is on disk."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from base.errors import RunFailed, UmbelError
from checkpoint.background import BackgroundWriter
from checkpoint.format import step_name
from checkpoint.job import Commit, Outcome, SaveJob, Slot
from checkpoint.retention import Retention
from checkpoint.writing import run_job
from configs.schema import RunConfig
from data.stream import BatchStream
from data.streaming.lanes import Cursors
from record.events import read_events, record_event, standing
from record.folder import RunFolder
from train.base_model import Base
from train.distributed import World
from train.engine import Engine
from train.facts import config_fingerprint, optimizer_facts, order_facts, software
from train.portable import fragments, small_fragments, stored_shapes, stores_frozen
from train.position import Position
from train.self_check import compare
from train.snapshot import Snapshot
from train.together import together

HEARING_SECONDS = 2.0
"""Between two looks at what became of the other processes' shares."""

CLOSING_SECONDS = 60
"""How long a run that ends by an error waits for the save it had begun."""


class Saved(NamedTuple):
    """A save that is on the disk: what it cost.

    ``blocked``: seconds the training loop was held; ``seconds``: from its begin until it was on the disk.
    """

    step: int
    blocked: float
    seconds: float


class Saver:
    """Saves one run's portable state.

    Args:
        run_id: of `record.identity`.
        base: the pretrained weights the run stands on, which are named in place of being stored.
        parent: identity of the checkpoint the run goes on from.
        keep: descriptors that the writer holds open while it lives: on rank 0 the run's lock.
        tell: called on rank 0 with what each save cost.

    Attributes:
        failures: saves that failed since the last one that did not. Rank 0 hears of those of all ranks.
    """

    def __init__(
        self,
        config: RunConfig,
        world: World,
        folder: RunFolder,
        run_id: str,
        stream: BatchStream,
        engine: Engine,
        *,
        base: Base | None = None,
        parent: str | None = None,
        keep: Sequence[int] = (),
        tell: Callable[[Saved], None] = lambda _: None,
    ) -> None:
        self.config, self.world, self.folder, self.run_id = config, world, folder, run_id
        self.stream, self.engine, self.base, self.parent, self.tell = stream, engine, base, parent, tell
        self.stores_frozen = stores_frozen(config.model)
        self.writer = BackgroundWriter(keep)
        self.snapshot = Snapshot(engine, self.writer, self.stores_frozen)
        self.failure: UmbelError | None = None
        self.failures = 0
        self.checked = not config.checkpoint.self_check
        self.began = self.blocked = self.waited = 0.0
        engine.before_update = self.settle

    def save(self, position: Position, cursors: Cursors | None = None, *, last: bool = False) -> bool:
        """Begin a save; says whether it did. Collective.

        Not, by `checkpoint.when_busy: skip`, while the one before is still being written, unless it is the
        ``last`` one.

        Args:
            cursors: where this process's lanes of a streamed run stand.

        Raises:
            RunFailed: the first save of a start is not what is live.
            UmbelError: one that is not asynchronous could not be written.
        """
        began = time.perf_counter()
        busy = self.world.sum([int(self.busy)])[0]
        if busy and self.config.checkpoint.when_busy == "skip" and not last:
            self._record(
                "checkpoint_skipped", step=position.step, reason="the last one is still being written"
            )
            return False
        self._wait()
        self.failure, self.began, self.waited = None, began, time.perf_counter() - began
        if cursors is not None:
            cursors = self.world.sum_array(cursors)
        written: list[Outcome | None] = []
        where = str(self.folder.checkpoints)
        together(self.world, lambda: written.append(self._begin(position, cursors)), where)
        self.blocked = time.perf_counter() - began
        self._conclude(written[0])
        if written[0] is not None:
            self.drain()
        # A first save that fails, because its writer was killed perhaps, is tried again like any other.
        if not self.checked and self._wait():
            self._check(position, cursors)
        return True

    @property
    def busy(self) -> bool:
        """Whether a save that was begun is not yet on the disk, as far as this process knows."""
        self.poll()
        return self.snapshot.busy or self.writer.busy

    def poll(self) -> None:
        """Take note of a save that has ended. Never waits."""
        self._conclude(self.writer.poll())

    def settle(self) -> None:
        """Wait until the live state has been copied: an update is about to write to it."""
        self.blocked += self.snapshot.settle()

    def drain(self) -> None:
        """Wait until what was begun is on the disk. Collective.

        Raises:
            UmbelError: it could not be written; earlier checkpoints are as they were.
        """
        self._wait()
        error, self.failure = self.failure, None
        together(self.world, lambda: _raise(error), str(self.folder.checkpoints))

    def close(self) -> None:
        """End the writer, after a save that is under way: it may be the newest state of a run that failed."""
        with contextlib.suppress(Exception):
            self._hand_over()
            self._conclude(self.writer.wait(CLOSING_SECONDS))
        self.snapshot.close()
        self.writer.close()

    def _wait(self) -> bool:
        """Wait until every process is done with what was begun; whether it is on the disk. Collective.

        Rank 0 waits for the shares of all others; one that fails and cannot even leave word on the disk is
        heard of here.
        """
        self._hand_over()
        while True:
            self._conclude(self.writer.wait(HEARING_SECONDS))
            busy, failed = self.world.sum([int(self.writer.busy), int(self.failure is not None)])
            if not busy:
                return not failed
            if failed:
                self.writer.abort("another process could not write its share")

    def _hand_over(self) -> None:
        """Wait until the copy is whole and the writer's: on a GPU, later than an update may begin."""
        began = time.perf_counter()
        self.snapshot.wait()
        self.blocked += time.perf_counter() - began

    def _begin(self, position: Position, cursors: Cursors | None) -> Outcome | None:
        """Have the state copied and written beside the steps, or write it here and now."""
        world, first = self.world, self.world.is_first
        small = small_fragments(self.engine, cursors)
        number = secrets.randbits(31) if first else 0
        save_id, total = world.sum([number, self.snapshot.nbytes + sum(piece.nbytes for piece in small)])
        commit = Commit(facts=self._facts(position), retention=self._retention()) if first else None

        def job(slots: list[Slot]) -> SaveJob:
            return SaveJob(
                checkpoints=self.folder.checkpoints,
                step=position.step,
                save_id=f"{save_id:08x}",
                rank=world.rank,
                world_size=world.size,
                slots=slots,
                parameters=stored_shapes(self.engine.model, self.stores_frozen),
                total_bytes=total,
                commit=commit,
            )

        if not self.config.checkpoint.asynchronous:
            return run_job(job([]), [*fragments(self.engine, self.stores_frozen), *small])
        self.snapshot.begin(small, lambda slots: self.writer.submit(job(slots)))
        return None

    def _check(self, position: Position, cursors: Cursors | None) -> None:
        """Read the first save back: what would be wrong in week three is wrong on day one."""
        checkpoint = self.folder.checkpoints / step_name(position.step)

        def check() -> None:
            if difference := compare(self.engine, checkpoint, cursors):
                raise RunFailed(
                    f"what was saved is not what is live: {difference}",
                    where=str(checkpoint),
                    fix="do not trust this run's checkpoints; report it, with the versions in the manifest",
                )

        together(self.world, check, str(checkpoint))
        self.checked = True
        self._record("self_check", step=position.step)

    def _conclude(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        if outcome.error is not None:
            self.failure = UmbelError(outcome.error)
            self.failure.exit_code = outcome.exit_code
            self.failures += 1
            self._record("warning", text=f"no checkpoint of step {outcome.step}: {outcome.error}")
            return
        self.failures = 0
        if self.world.is_first:
            self.parent = outcome.digest
            seconds = time.perf_counter() - self.began
            self._record(
                "checkpoint",
                step=outcome.step,
                seconds=round(seconds, 3),
                blocked=round(self.blocked, 4),
                waited=round(self.waited, 4),
                bytes=outcome.bytes,
            )
            if outcome.warning is not None:
                self._record("warning", text=outcome.warning)
            self.tell(Saved(outcome.step, self.blocked, seconds))

    def _retention(self) -> Retention:
        settings = self.config.checkpoint
        return Retention(
            keep_last=settings.keep_last,
            keep_every=settings.keep_every,
            keep_best=settings.keep_best,
            scores=held_out_scores(self.folder) if settings.keep_best else {},
        )

    def _facts(self, position: Position) -> dict[str, Any]:
        parallelism = self.config.parallelism
        return {
            "run_id": self.run_id,
            "run_name": self.config.run.name,
            **asdict(position),
            "parent": self.parent,
            "config_fingerprint": config_fingerprint(self.config),
            "data_fingerprint": self.stream.prepared.fingerprint,
            **optimizer_facts(self.engine),
            "software": software(),
            "topology": {
                "world_size": self.world.size,
                "zero_stage": parallelism.zero_stage,
                "engine": parallelism.engine,
            },
            "extra": {
                "institution": self.config.cluster.institution,
                "order": order_facts(self.stream.order, position.sequences),
                **({"left_out": self.stream.left_out} if self.stream.left_out else {}),
                **({"base": self.base} if self.base else {}),
            },
        }

    def _record(self, event: str, **facts: object) -> None:
        if self.world.is_first:
            record_event(self.folder, event, **facts)


def held_out_scores(folder: RunFolder) -> dict[int, float]:
    """Mean held-out loss over the sources, by step."""
    return {
        event["step"]: sum(event["losses"].values()) / len(event["losses"])
        for event in standing(read_events(folder))
        if event["event"] == "evaluation" and event["losses"]
    }


def _raise(error: UmbelError | None) -> None:
    if error is not None:
        raise error
