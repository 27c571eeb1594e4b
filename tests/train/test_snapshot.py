"""A step that runs while its state is being copied changes neither the copy nor the step."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.background import BackgroundWriter
from checkpoint.fragment import Fragment
from checkpoint.job import Slot
from support.curves import micro_batches
from support.portable_state import facts_of, job_of, make_state
from support.processes import run_workers
from support.runs import tiny
from support.small_models import ALONE
from train.distributed import World
from train.engine import Engine, build_engine
from train.facts import optimizer_facts
from train.host_memory import HostMemory
from train.portable import stored_shapes
from train.self_check import compare
from train.snapshot import Snapshot

STAGES = [
    ["parallelism=zero1", "parallelism.zero_stage=0"],
    ["parallelism=zero1", "model.precision=bf16"],
    ["parallelism=zero2"],
    ["parallelism=zero2", "model.precision=bf16"],
    ["parallelism=zero3"],
    ["parallelism=zero3", "model.precision=bf16"],
    ["parallelism=zero3_offload", "model.precision=bf16"],
]
STEPS = 3
# Sizes that neither a world of 2 nor DeepSpeed's alignment divides.
ODD = ("model.config.hidden_size=33", "model.config.n_head=3", "model.config.vocab_size=321")


class Writer:
    """Memory, and nobody who reads it."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def arena(self, nbytes: int) -> memoryview:
        self.given.append(nbytes)
        self.memory = mmap.mmap(-1, nbytes)
        return memoryview(self.memory)

    def read(self, slot: Slot, nbytes: int) -> bytes:
        return self.memory[slot.offset : slot.offset + nbytes]


class Gate:
    """A copy that begins only when it is let: after everything that may run beside it has run."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.copied: list[int] = []

    def __call__(self, memory: HostMemory, offset: int, tensor: torch.Tensor) -> None:
        assert self.opened.wait(60)
        self.copied.append(offset)
        copy_now(memory, offset, tensor)


copy_now = HostMemory.copy


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(HostMemory, "copy", lambda *arguments: made(*arguments))
    yield made
    made.opened.set()


def engine_of(folder: Path, *overrides: str, world: World = ALONE) -> Engine:
    return build_engine(tiny(folder, "schedule.global_batch=8", *ODD, *overrides), world, 4)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = engine_of(tmp_path, "parallelism=ddp", "parallelism.processes=1")
    one_step(made, 1)
    return made


def one_step(engine: Engine, step: int) -> float:
    batches, targets = micro_batches(step, engine.world.rank, engine.world.size, 4)
    return float(engine.step(step, batches, targets, 1e-2).loss)


def state_of(engine: Engine) -> dict[tuple[str, str, int], bytes]:
    """The bytes of what this process owns."""
    return {
        (piece.parameter, kind, piece.start): view.view(torch.uint8).numpy().tobytes()
        for piece in engine.state.owned()
        for kind, view in piece.views.items()
    }


def copied(writer: Writer, slots: list[Slot], wanted: dict[Any, bytes]) -> dict[Any, bytes]:
    """The bytes in the arena, keyed as `state_of` keys them."""
    keys = [(slot.parameter, slot.kind, slot.start) for slot in slots]
    assert sorted(keys) == sorted(wanted), "each slice has one slot"
    return {key: writer.read(slot, len(wanted[key])) for key, slot in zip(keys, slots, strict=True)}


# What is copied -----------------------------------------------------------------------------------------


def test_the_arena_holds_the_state_and_what_stands_beside_it(engine: Engine) -> None:
    writer, slots = Writer(), []
    snapshot = Snapshot(engine, writer)
    assert writer.given == [], "nothing is allocated before it is needed"
    eager = [
        Fragment("data.cursors", "buffer", 0, b"12345678", "I64", (1,)),
        Fragment("empty", "buffer", 0, b"", "F32", (0, 3)),
        Fragment("late", "buffer", 0, lambda: b"abcd", "U8", (2, 2)),
    ]
    snapshot.begin(eager, slots.extend)
    snapshot.settle()
    state = state_of(engine)
    assert copied(writer, slots[:-3], state) == state
    assert [writer.read(slot, 8)[: piece.nbytes] for slot, piece in zip(slots[-3:], eager, strict=True)] == [
        b"12345678",
        b"",
        b"abcd",
    ]
    assert [slot.shape for slot in slots[-3:]] == [(1,), (0, 3), (2, 2)]
    assert all(slot.offset % 64 == 0 for slot in slots)
    ends = sorted((slot.offset, slot.offset + len(state.get(slot[:3], b""))) for slot in slots)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    assert snapshot.nbytes == sum(map(len, state.values()))
    assert snapshot.nbytes == 12 * sum(parameter.numel() for parameter in engine.model.parameters())


def test_the_writer_makes_a_checkpoint_of_it_that_is_what_is_live(engine: Engine, tmp_path: Path) -> None:
    writer, state = BackgroundWriter(), make_state()
    snapshot = Snapshot(engine, writer)
    facts = facts_of(state, 100, 1) | optimizer_facts(engine)

    def submit(slots: list[Slot]) -> None:
        job = job_of(tmp_path, state, slots)
        shapes = stored_shapes(engine.model, with_frozen=True)
        commit = dataclasses.replace(job.commit, facts=facts)
        writer.submit(dataclasses.replace(job, parameters=shapes, total_bytes=snapshot.nbytes, commit=commit))

    snapshot.begin([], submit)
    snapshot.wait()
    outcome = writer.wait(60)
    assert outcome.error is None
    assert compare(engine, tmp_path / "step-00000100", None) is None
    snapshot.close()
    writer.close()


def test_frozen_weights_are_copied_once_and_again_into_new_memory(engine: Engine, gate: Gate) -> None:
    engine.model.lm_head.weight.requires_grad_(False)  # tied: the embedding, too
    writer, slots = Writer(), []
    snapshot = Snapshot(engine, writer)
    gate.opened.set()
    snapshot.begin([], slots.extend)
    snapshot.wait()
    frozen = [slot.offset for slot in slots if slot.kind == "frozen"]
    assert len(frozen) == 1
    assert frozen[0] in gate.copied
    gate.copied.clear()
    snapshot.begin([], slots.extend)
    snapshot.wait()
    assert len(gate.copied) == len(slots) // 2 - 1
    assert frozen[0] not in gate.copied
    snapshot.begin([Fragment("more", "buffer", 0, b"1234", "F32", (1,))], lambda _: None)
    snapshot.wait()
    assert len(writer.given) == 2
    assert frozen[0] in gate.copied
    state = state_of(engine)
    assert copied(writer, slots[: len(slots) // 2], state) == state

    other = Snapshot(engine, Writer(), with_frozen=False)
    assert other.nbytes == snapshot.nbytes - engine.model.lm_head.weight.nbytes


def test_a_first_copy_that_fails_leaves_frozen_weights_to_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.model.lm_head.weight.requires_grad_(False)
    writer, slots = Writer(), []
    snapshot = Snapshot(engine, writer)
    with monkeypatch.context() as patched:
        patched.setattr(HostMemory, "copy", lambda *_: 1 / 0)
        snapshot.begin([], slots.extend)
        with pytest.raises(ZeroDivisionError):
            snapshot.settle()
    assert slots == []
    snapshot.begin([], slots.extend)
    snapshot.settle()
    state = state_of(engine)
    assert copied(writer, slots, state) == state


# When --------------------------------------------------------------------------------------------------


def test_settle_waits_for_the_copy_and_tells_how_long(engine: Engine, gate: Gate) -> None:
    snapshot, handed = Snapshot(engine, Writer()), []
    assert snapshot.settle() == 0.0
    assert not snapshot.busy
    snapshot.begin([], handed.append)
    assert snapshot.busy
    assert handed == []
    threading.Timer(0.2, gate.opened.set).start()
    assert 0.1 < snapshot.settle() < 10
    assert len(handed) == 1
    assert not snapshot.busy
    assert snapshot.settle() == 0.0


def test_a_copy_waits_for_the_one_before(engine: Engine, gate: Gate) -> None:
    snapshot, handed = Snapshot(engine, Writer()), []
    snapshot.begin([], lambda _: handed.append("first"))
    threading.Timer(0.1, gate.opened.set).start()
    snapshot.begin([], lambda _: handed.append("second"))
    assert handed[0] == "first"
    snapshot.wait()
    assert handed == ["first", "second"]


def test_what_goes_wrong_in_handing_on_is_told_once(engine: Engine) -> None:
    snapshot = Snapshot(engine, Writer())
    snapshot.begin([], lambda _: (_ for _ in ()).throw(BrokenPipeError("gone")))
    with pytest.raises(BrokenPipeError, match="gone"):
        snapshot.settle()
    assert snapshot.settle() == 0.0
    assert not snapshot.busy


def test_memory_is_let_go_before_its_owner_closes_it(engine: Engine) -> None:
    writer = Writer()
    snapshot = Snapshot(engine, writer)
    snapshot.begin([], lambda _: None)
    snapshot.wait()
    with pytest.raises(BufferError):
        writer.memory.close()
    snapshot.close()
    writer.memory.close()


# On a device, as far as that can be said without one ----------------------------------------------------


class Runtime:
    """The part of CUDA's runtime that pins memory."""

    def __init__(self, refusal: int = 0) -> None:
        self.refusal, self.pinned, self.calls, self.told = refusal, set(), 0, 0

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        self.calls += 1
        self.pinned |= set() if self.refusal else {address}
        return self.refusal

    def cudaHostUnregister(self, address: int) -> int:
        self.pinned.remove(address)
        return 0

    def tell(self) -> None:
        self.told += 1
        raise RuntimeError("CUDA error: out of memory")


class Stream:
    """A stream, its device and its events in one, at work until it is let finish."""

    def __init__(self, device: object = None) -> None:
        self.device, self.waits, self.finished = device, [], threading.Event()

    def wait_stream(self, other: Stream) -> None:
        self.waits.append(other)

    wait_event = wait_stream

    def record_event(self) -> Stream:
        return self

    def synchronize(self) -> None:
        assert self.finished.wait(60)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Every tensor says it is on a device; returns the stream of the steps."""
    current = Stream()
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    return current


def test_the_steps_stream_waits_for_the_copies_and_the_host_does_not(engine: Engine, cuda: Stream) -> None:
    state, writer, slots = state_of(engine), Writer(), []
    snapshot = Snapshot(engine, writer)
    snapshot.begin([], slots.extend)
    side = snapshot._stream
    assert side.waits == [cuda], "the copies come after what the steps have queued"
    assert snapshot.settle() < 1
    assert cuda.waits == [side], "the next update comes after the copies"
    assert snapshot.busy
    assert slots == [], "nobody is told before the device is done"
    side.finished.set()
    snapshot.wait()
    assert copied(writer, slots, state) == state
    assert snapshot.settle() == 0.0
    assert len(cuda.waits) == 1


def test_the_host_waits_for_its_own_part_alone(
    engine: Engine, cuda: Stream, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offloaded optimizer: some of the state on the device, some in host memory."""
    state, writer, slots = state_of(engine), Writer(), []
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.numel() < 1000))
    snapshot = Snapshot(engine, writer)
    snapshot.begin([], slots.extend)
    threading.Timer(0.2, gate.opened.set).start()
    assert 0.1 < snapshot.settle() < 10
    assert 0 < len(gate.copied) < len(state)
    assert cuda.waits == [snapshot._stream]
    assert slots == []
    snapshot._stream.finished.set()
    snapshot.wait()
    assert copied(writer, slots, state) == state


def test_what_goes_wrong_after_the_step_has_gone_on_is_told_at_the_next(engine: Engine, cuda: Stream) -> None:
    snapshot = Snapshot(engine, Writer())
    snapshot.begin([], lambda _: 1 / 0)
    snapshot.settle()
    snapshot._stream.finished.set()
    snapshot._thread.join()
    with pytest.raises(ZeroDivisionError):
        snapshot.settle()


def test_memory_is_pinned_once_and_let_go_before_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, writer = Runtime(), Writer()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    memory = HostMemory(writer, pinned=True)
    assert memory.require(4096)
    first = set(runtime.pinned)
    assert len(first) == 1
    assert not memory.require(100)
    assert memory.require(1 << 20)
    assert runtime.calls == 2
    assert len(runtime.pinned) == 1
    memory.release()
    assert runtime.pinned == set()
    writer.memory.close()


def test_where_pinning_is_refused_it_is_said_once_and_copies_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, writer = Runtime(refusal=2), Writer()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    # CUDA tells its last error to the next kernel, whosever it is.
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: runtime.tell())
    memory = HostMemory(writer, pinned=True)
    with pytest.warns(UserWarning, match=r"CUDA error 2"):
        memory.require(4096)
    memory.require(1 << 20)
    memory.write(64, b"hello")
    assert writer.memory[64:69] == b"hello"
    assert runtime.calls == runtime.told == 1
    memory.release()


# Beside a step -----------------------------------------------------------------------------------------


def test_a_copy_that_an_update_did_not_wait_for_is_torn(engine: Engine, gate: Gate) -> None:
    """That the tests below would see it."""
    writer, slots = Writer(), []
    snapshot, before = Snapshot(engine, writer), state_of(engine)
    snapshot.begin([], slots.extend)
    one_step(engine, 2)
    gate.opened.set()
    snapshot.wait()
    assert copied(writer, slots, before) != before


def beside(folder: str) -> list[str]:
    """In every rank: the same steps with a copy under way at each and without; returns what differs."""
    from accelerate.state import AcceleratorState

    from train import distributed

    gate, world, found = Gate(), None, []
    HostMemory.copy = lambda *arguments: gate(*arguments)
    for stage in STAGES:
        config = tiny(Path(folder), "schedule.global_batch=8", *ODD, *stage, "parallelism.processes=null")
        world = world or distributed.start(config.cluster)
        losses: list[list[float]] = []
        for saves in (False, True):
            engine = build_engine(config, world, 4)
            losses.append([])
            steps = saving_steps(engine, gate) if saves else plain_steps(engine)
            for loss, difference in steps:
                losses[-1].append(loss)
                found += [f"{stage}: {what}" for what in difference]
            AcceleratorState._reset_state(reset_partial_state=True)
        if losses[0] != losses[1]:
            found.append(f"{stage}: losses {losses}")
    distributed.stop()
    return found


def plain_steps(engine: Engine) -> Iterator[tuple[float, list[str]]]:
    for step in range(1, STEPS + 1):
        yield one_step(engine, step), []


def saving_steps(engine: Engine, gate: Gate) -> Iterator[tuple[float, list[str]]]:
    """Everything is copied after evaluation, forward and backward pass, right before the update."""
    writer, slots = Writer(), []
    snapshot = Snapshot(engine, writer)

    def before_update() -> None:
        gate.opened.set()
        snapshot.settle()

    engine.before_update = before_update
    for step in range(1, STEPS + 1):
        state = state_of(engine)
        slots.clear()
        gate.opened.clear()
        snapshot.begin([], slots.extend)
        engine.evaluate(micro_batches(99, engine.world.rank, engine.world.size, 4)[0])
        loss = one_step(engine, step)
        found = copied(writer, slots, state)
        yield loss, [f"step {step}: {key}" for key, value in found.items() if value != state[key]]


def test_beside_a_step_of_the_torch_engine(tmp_path: Path, gate: Gate) -> None:
    alone = ("parallelism=ddp", "parallelism.processes=1")
    plain = list(plain_steps(engine_of(tmp_path, *alone)))
    assert list(saving_steps(engine_of(tmp_path, *alone), gate)) == plain


@pytest.mark.slow
def test_beside_a_step_of_every_stage(tmp_path: Path) -> None:
    found = run_workers(2, beside, str(tmp_path), timeout=300, gloo=False)
    assert found == [[], []]
