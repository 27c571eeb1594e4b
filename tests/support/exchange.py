"""What one engine saved, given to another: every tensor and fact compared, and the losses after it.

One group of processes per world size, all at work together; checkpoints cross from one group to another.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from support.engines import (
    SEQUENCES,
    STEPS,
    Topology,
    batches_of,
    differences,
    go_on,
    make_engine,
    make_models_mixed,
    named_buffers,
    one_step,
    pointers,
    save,
)
from support.processes import free_port, run_workers, worker_env
from support.runs import tiny


class Load(NamedTuple):
    """One checkpoint given to one engine, and what came of it.

    ``losses``: of the steps after it; ``expected``: those of the engine that saved, which went on.
    """

    model: str
    precision: str
    source: Topology
    target: Topology
    differences: list[str]
    losses: list[float]
    expected: list[float]

    def __str__(self) -> str:
        return f"{self.model} in {self.precision} from {self.source} to {self.target}"


class Plan(NamedTuple):
    """Which checkpoint goes where. ``model``: "mixed" (some of it is frozen) or "adapted" (LoRA)."""

    model: str
    precision: str
    pairs: list[tuple[Topology, Topology]]


def exchange(folder: Path, plans: list[Plan], timeout: float = 300) -> list[Load]:
    """Carry the plans out."""
    (ranks,) = run_workers(1, fork_all, str(folder), plans, timeout=timeout, gloo=False)
    for first, *others in ranks:
        for load, *theirs in zip(first, *others, strict=True):
            load[4].extend(difference for one in theirs for difference in one[4])
    found = [load for first, *_ in ranks for load in first]
    return [Load(*load[:2], Topology(*load[2]), Topology(*load[3]), *load[4:]) for load in found]


def fork_all(folder: str, plans: list[Any]) -> list[Any]:
    """One process of each rank of each world size, forked when the slow imports are done: what each found."""
    import peft  # noqa: F401
    from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401

    from train import deepspeed_engine, torch_engine  # noqa: F401

    fork = multiprocessing.get_context("fork")
    worlds = sorted({topology[1] for *_, pairs in plans for pair in pairs for topology in pair})
    ports = {world: free_port() for world in worlds}
    calls = [(folder, plans, rank, world, ports[world]) for world in worlds for rank in range(world)]
    started = [fork.Process(target=run_rank, args=call, daemon=True) for call in calls]
    for process in started:
        process.start()
    while waiting := [process for process in started if process.exitcode != 0]:
        assert not any(process.exitcode for process in waiting), "a process failed, as it says itself"
        time.sleep(0.05)
    files = [[result_file(folder, world, rank) for rank in range(world)] for world in worlds]
    return [[json.loads(file.read_text()) for file in of_world] for of_world in files]


def run_rank(folder: str, plans: list[Any], rank: int, world: int, port: int) -> None:
    os.environ |= worker_env(rank, world, port)
    result_file(folder, world, rank).write_text(json.dumps(worker(folder, plans)))


def result_file(folder: str, world: int, rank: int) -> Path:
    return Path(folder, f"result-{world}-{rank}.json")


def worker(folder: str, plans: list[Any]) -> list[Any]:
    """In every process: its world size's part of the plans, as `Load`s."""
    from train import distributed

    make_models_mixed()
    config = tiny(Path(folder), "parallelism.processes=null", f"schedule.global_batch={SEQUENCES}")
    world = distributed.start(config.cluster)
    loads = []
    for number, (*run, pairs) in enumerate(plans):
        home = Path(folder, str(number))
        chosen = [(Topology(*source), Topology(*target)) for source, target in pairs]
        build = partial(make_engine, config, run, world=world)
        for source in dict.fromkeys(source for source, _ in chosen if source.world == world.size):
            save_one(build(source, seed=1), home, source)
        for target in dict.fromkeys(target for _, target in chosen if target.world == world.size):
            sources = [source for source, its in chosen if its == target]
            found = load_all(build(target, seed=2), home, sources, target)
            loads += [[*run, source, target, *what] for source, what in zip(sources, found, strict=True)]
    distributed.stop()
    return loads


def save_one(engine: Any, home: Path, source: Topology) -> None:
    """Train, save, and go on."""
    places = pointers(engine)
    for step in range(1, STEPS + 1):
        one_step(engine, step)
    for _, buffer in named_buffers(engine):
        buffer.fill_(7)
    save(engine, home / str(source))
    kept = [view.clone() for piece in engine.state.owned() for view in piece.views.values()]
    touched: list[str] = []

    def compare() -> None:
        views = [view for piece in engine.state.owned() for view in piece.views.values()]
        if not all(one.equal(other) for one, other in zip(kept, views, strict=True)):
            touched.append(f"{source}: a backward pass writes to the state")

    engine.before_update = compare
    losses = [one_step(engine, STEPS + 1)]
    engine.before_update = lambda: None
    losses += go_on(engine, STEPS + 2)
    if pointers(engine) != places:
        touched.append(f"{source}: a view is another tensor after some steps")
    assert not touched
    if engine.world.is_first:
        made = home / str(source) / "losses.tmp"
        made.write_text(json.dumps(losses))
        os.replace(made, made.with_suffix(".json"))


def load_all(engine: Any, home: Path, sources: list[Topology], target: Topology) -> list[Any]:
    """Give one engine, new at first and used later, every source's checkpoint: differences and losses."""
    from checkpoint.reader import StateReader
    from train.facts import check_parameters, restore_optimizer
    from train.portable import read_state

    loads: list[Any] = []
    places = pointers(engine)
    for source in sources:
        checkpoint, expected = wait_for(home / str(source))
        with StateReader(checkpoint) as reader:
            check_parameters(reader.manifest, engine.model, checkpoint)
            read_state(reader, engine)
        restore_optimizer(engine, reader.manifest)
        copied = save(engine, home / f"{source}-{target}")
        found = differences(checkpoint, copied) if engine.world.is_first else []
        losses = go_on(engine, STEPS + 1)
        # ZeRO-3 leaves parameters gathered after an evaluation; the next load must reach them all the same.
        engine.evaluate(batches_of(engine, STEPS)[0])
        if pointers(engine) != places:
            found.append("a view is another tensor than before")
        loads.append([found, losses, expected])
    return loads


def wait_for(saved: Path) -> tuple[Path, list[float]]:
    """A source's checkpoint and its losses after it, when another world size has them ready."""
    from checkpoint.format import step_name

    while not (saved / "losses.json").exists():
        time.sleep(0.05)
    return saved / step_name(STEPS), json.loads((saved / "losses.json").read_text())
