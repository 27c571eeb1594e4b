"""What supervision adds to a step: the same loop with and without it, interleaved in one process.

    python benchmarks/supervision.py [--rounds 15] [--steps 12] [--overrides model=llama_tiny …]

With it: a pulse at every step, probes of the device, the node's watcher (`launch.supervise.node`), and a
process that runs all detectors twice a second, as the supervisor does. Without: none of these; the processes
are stopped (SIGSTOP). A round times one after the other, the order alternating; the figure is the median of
the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from results import machine, write_result

from configs.compose import compose, load, save
from configs.schema import RunConfig
from record.folder import RunFolder
from record.heartbeats import node_name, read_reports

WARM_UP = 3
"""Steps before the first round."""

LOOK_SECONDS = 0.5
GOAL = 1.005
"""Step time with supervision, at most so many times that without."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--overrides", nargs="*", default=[])
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        watch(RunFolder(options.watch))
        return
    with tempfile.TemporaryDirectory() as place:
        config = compose(
            [
                "experiment=demo",
                f"run.dir={place}",
                "schedule.steps=100000",
                "parallelism.micro_batch=8",
                *options.overrides,
            ]
        )
        pairs = measure(config, options.rounds, options.steps)
    ratios = [with_it / without for with_it, without in pairs]
    median = statistics.median(ratios)
    result = {
        "median_ratio": round(median, 4),
        "goal": GOAL,
        "ratios": [round(ratio, 4) for ratio in ratios],
        "step_seconds": round(statistics.median(without for _, without in pairs), 4),
        "machine": machine(),
    }
    print(f"median ratio of step times, with / without supervision: {median:.4f} (goal: below {GOAL})")
    write_result(Path(__file__).stem, result)


def watch(folder: RunFolder) -> None:
    """What the supervisor does while workers live."""
    from launch.supervise.detect import detectors  # not above, where checkpoint is the benchmark of that name

    looking = detectors(folder, load(folder.run_yaml), 1, [node_name()])
    while True:
        for detector in looking:
            for finding in detector.look(time.time()):
                print(f"found: {finding.text}", flush=True)
        time.sleep(LOOK_SECONDS)


def measure(config: RunConfig, rounds: int, steps: int) -> list[tuple[float, float]]:
    """Seconds of a step with supervision and without, for each round."""
    folder = RunFolder.of(config).create()
    save(config, folder.run_yaml)
    training = Training(config, folder)
    training.run(WARM_UP, supervised=True)
    commands = (
        ["-m", "launch.supervise.node", str(folder.path), "1"],
        [__file__, "--watch", str(folder.path)],
    )
    processes = [subprocess.Popen([sys.executable, "-P", *command], env=_variables()) for command in commands]
    try:
        while not read_reports(folder, 1):
            time.sleep(0.1)
        time.sleep(2)  # the detectors' process has cleared old reports by now
        return [timed_round(training, processes, steps, number) for number in range(1, rounds + 1)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        training.close()


def timed_round(
    training: Training, processes: Sequence[subprocess.Popen[bytes]], steps: int, number: int
) -> tuple[float, float]:
    """One side after the other; every second round the other way round."""
    taken: dict[bool, float] = {}
    for supervised in (True, False) if number % 2 else (False, True):
        for process in processes:
            process.send_signal(signal.SIGCONT if supervised else signal.SIGSTOP)
        taken[supervised] = training.run(steps, supervised=supervised)
    told = f"{taken[True]:.4f} s with, {taken[False]:.4f} s without, {taken[True] / taken[False]:.4f}"
    print(f"round {number}: {told}")
    return taken[True], taken[False]


class Training:
    """The real loop on the real engine, a few steps at a time."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        from data.prepare import prepare
        from data.stream import BatchStream
        from record.metrics import MetricsWriter
        from train import distributed
        from train.engine import build_engine
        from train.heartbeat import Pulse, Silent
        from train.hooks.garbage import ManualGarbageCollection
        from train.hooks.metrics import Metrics
        from train.loop import Loop
        from train.position import Position
        from train.stop import StopRequest

        world = distributed.start(config.cluster)
        self.pulse, self.silent = Pulse(folder), Silent()
        self.pulse.join(replace(world, size=2))  # alone it would not time its device
        stream = BatchStream(prepare(config.data), config)
        hooks = [
            Metrics(config, world, [MetricsWriter(folder, 1).write], lambda _: None),
            ManualGarbageCollection(),
        ]
        stop = StopRequest(folder, polls=True)
        self.loop = Loop(
            config, world, build_engine(config, world, 8), stream, 8, stop, lambda _: False, hooks
        )
        self.position = Position()
        self.end = distributed.stop

    def run(self, steps: int, *, supervised: bool) -> float:
        """Seconds that each of the next steps takes."""
        self.loop.pulse = self.pulse if supervised else self.silent
        began = time.perf_counter()
        self.position = self.loop.run(self.position, None, self.position.step + steps)
        return (time.perf_counter() - began) / steps

    def close(self) -> None:
        """Leave nothing behind."""
        self.pulse.close()
        self.end()


def _variables() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[1])
    here = str(Path(__file__).parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, here])}


if __name__ == "__main__":
    main()
