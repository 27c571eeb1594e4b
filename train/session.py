"""A start of a run, from its parts to its end: the one place where everything meets."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

from configs.batch import check_batch
from configs.schema import RunConfig
from data.order.consumption import consumption
from data.places.retry import BadFile
from record.control import clear_stop
from record.events import latest, read_events, record_event
from record.folder import RunFolder
from record.identity import run_id
from record.lock import RunLock
from record.metrics import MetricsWriter
from train.architecture import check_shape
from train.base_model import describe_base
from train.cadence import Cadence
from train.distributed import World
from train.document_mask import check_document_mask
from train.engine import build_engine
from train.heartbeat import Pulse, Silent, Told
from train.hooks.checkpoints import Checkpoints
from train.hooks.evaluation import Evaluation
from train.hooks.garbage import ManualGarbageCollection
from train.hooks.metrics import Metrics, Sink
from train.hooks.replicas import CompareReplicas
from train.hooks.samples import Samples
from train.left_out import leave_out
from train.loop import Hook, Loop
from train.memory import device_memory
from train.micro_batch import choose_micro_batch
from train.position import Position
from train.prompt import trained_on_chats
from train.restoring import Restored, find, load
from train.run_data import open_data, open_stream
from train.saving import Saver
from train.stop import StopRequest, save_requests
from train.utilisation import utilisation

STOP_AFTER = "UMBEL_STOP_AFTER"
"""Environment: stop after this step, as if asked to."""


class Session:
    """Everything one process needs to train. All collective calls are made in the same order on each."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        world: World,
        attempt: int,
        lock: RunLock,
        pulse: Pulse | None = None,
    ) -> None:
        self.config, self.folder, self.world, self.attempt = config, folder, world, attempt
        self.lock, self.pulse = lock, pulse or Silent()
        self.stop = StopRequest(folder, polls=world.is_first)
        self.tracker: Sink = lambda _: None

    def run(self) -> None:
        """Restore what there is, train, save where it ends."""
        self._phase("preparing data", "data")
        check_shape(self.config)
        check_document_mask(self.config)
        self.micro_batch = self._choose_micro_batch()
        prepared = open_data(self.config, self.folder, self.world)
        self.stream = open_stream(self.config, prepared, self.folder)
        if self._stopped_early():
            return
        self._phase("building model", "model")
        self.engine = build_engine(self.config, self.world, self.micro_batch)
        if self._stopped_early():
            return
        self.run_id = self._run_id()
        self.pulse.phase("restoring")
        restored = self._restore()
        self._record_start(restored.position)
        with ExitStack() as self.at_end:
            self._train(restored)

    def _stopped_early(self) -> bool:
        """Whether all agree to stop before there is anything to save; the newest checkpoint stays."""
        if not self.stop.agreed(self.world):
            return False
        if self.world.is_first:
            newest = latest(read_events(self.folder), "checkpoint")
            self._record_stop(newest["step"] if newest else 0, self.stop.reason)
        return True

    def _restore(self) -> Restored:
        self.base = describe_base(self.config.model) if self.world.is_first else None
        checkpoint = find(self.config, self.world, self.folder, self.run_id)
        if checkpoint is None:
            return Restored()
        return load(checkpoint, self.config, self.world, self.engine, self.stream, self.run_id, self.base)

    def _saver(self, restored: Restored, cadence: Cadence) -> Saver:
        descriptor = self.lock.descriptor
        saver = Saver(
            self.config,
            self.world,
            self.folder,
            self.run_id,
            self.stream,
            self.engine,
            base=self.base,
            parent=restored.digest,
            # No later start looks at the folder while this one's writer may still rename something there.
            keep=() if descriptor is None else (descriptor,),
            tell=lambda saved: cadence.saved(saved.step, time.monotonic(), saved.blocked, saved.seconds),
        )
        self.at_end.callback(saver.close)
        return saver

    def _train(self, restored: Restored) -> None:
        config, steps, position = self.config, self.config.schedule.steps, restored.position
        last_step = min(steps, int(os.environ.get(STOP_AFTER, steps)))
        cadence = Cadence(config.checkpoint, config.cluster)
        saver = self._saver(restored, cadence)
        mfu = utilisation(config, self.engine, self.world)
        consumed = partial(consumption, self.stream.order, self.stream.prepared.manifest)
        metrics = Metrics(config, self.world, self._sinks(), mfu, lambda: checkpoints.begun.step, consumed)
        wanted = save_requests(self.folder)
        checkpoints = Checkpoints(saver, cadence, self.stop, position, metrics.flush, wanted)
        # What a kill repeats does no harm, what it skips would: checkpoints come last.
        replicas = CompareReplicas(self.engine, self.world, config.checkpoint.compare_replicas)
        told = Told(self.pulse, "saving", checkpoints)
        hooks: list[Hook] = [metrics, *self._observers(), replicas, told, ManualGarbageCollection()]
        self._phase("first step", "step")
        loop = Loop(
            config,
            self.world,
            self.engine,
            self.stream,
            self.micro_batch,
            self.stop,
            checkpoints.due,
            hooks,
            self.pulse,
        )
        try:
            position = loop.run(position, restored.cursors, last_step)
        except BadFile as error:
            raise leave_out(self.stream, self.folder, error) from error
        self.pulse.phase("ending")
        checkpoints.finish()
        self._record_end(position, last_step)

    def _record_end(self, position: Position, last_step: int) -> None:
        if position.step < self.config.schedule.steps:
            reason = f"{STOP_AFTER}={last_step}" if position.step == last_step else self.stop.reason
            self._record_stop(position.step, reason)
        else:
            self._record("finished", step=position.step)

    def _record_stop(self, step: int, reason: str | None) -> None:
        """A request is served once."""
        self._record("stopped", step=step, reason=reason or "another process was asked to")
        if self.world.is_first:
            clear_stop(self.folder)

    def _choose_micro_batch(self) -> int:
        """The configured one, or on every process what rank 0's memory allows."""
        configured = self.config.parallelism.micro_batch
        if configured == "auto":
            configured = self.world.first(self._find_micro_batch() if self.world.is_first else 0)
        check_batch(self.config, self.world.size, configured)
        return configured

    def _find_micro_batch(self) -> int:
        """What the last start of this world size took: only with it are the numbers the same to the bit."""
        last = latest(read_events(self.folder), "start")
        if last and last["world_size"] == self.world.size:
            return last["micro_batch"]
        return choose_micro_batch(self.config, self.world.size, device_memory(self.config, self.world.size))

    def _run_id(self) -> str:
        if self.world.is_first:
            run_id(self.folder)
        self.world.barrier()
        return run_id(self.folder)

    def _sinks(self) -> list[Sink]:
        if not self.world.is_first:
            return []
        sinks: list[Sink] = [MetricsWriter(self.folder, self.attempt).write, _print_last]
        if self.config.tracker.name == "wandb":
            from train.hooks.wandb import Wandb

            self.tracker = self.at_end.enter_context(Wandb(self.config, self.folder, self.run_id))
            sinks.append(self.tracker)
        return sinks

    def _observers(self) -> list[Hook]:
        evaluation, samples = self.config.evaluation, self.config.samples
        stopping = partial(self.stop.agreed, self.world)
        held_out = Evaluation(
            self.engine,
            self.stream,
            self.world,
            evaluation.every,
            evaluation.sequences,
            self.micro_batch,
            self._evaluated,
            stopping,
        )
        continuations = Samples(
            samples,
            self.engine,
            self.stream.prepared.tokenizer,
            self.world,
            self.config.data.sequence_length,
            lambda step, prompt, text: self._record("sample", step=step, prompt=prompt, text=text),
            chats=trained_on_chats(self.stream.prepared.manifest),
            stopping=stopping,
        )
        return [
            Told(self.pulse, "evaluating", held_out, evaluation.every),
            Told(self.pulse, "sampling", continuations, samples.every),
        ]

    def _evaluated(self, step: int, losses: dict[str, float]) -> None:
        self._record("evaluation", step=step, losses=losses)
        self.tracker([{"step": step, **{f"held_out/{source}": loss for source, loss in losses.items()}}])

    def _record_start(self, position: Position) -> None:
        self._record(
            "start",
            attempt=self.attempt,
            step=position.step,
            world_size=self.world.size,
            zero_stage=self.config.parallelism.zero_stage,
            micro_batch=self.micro_batch,
            pid=os.getpid(),
        )

    def _phase(self, name: str, beat: str) -> None:
        self.pulse.phase(beat)
        self._record("phase", name=name, attempt=self.attempt)

    def _record(self, event: str, **facts: object) -> None:
        if self.world.is_first:
            record_event(self.folder, event, **facts)


def _print_last(lines: list[dict[str, Any]]) -> None:
    """A line for rank 0's log: what `umbel logs -f` follows."""
    line = lines[-1]
    print(
        f"step {line['step']}  loss {line['loss']:.4f}  grad_norm {line['grad_norm']:.3f}  "
        f"lr {line['lr']:.2e}  {line['tokens_per_second']:.0f} tokens/s",
        flush=True,
    )
