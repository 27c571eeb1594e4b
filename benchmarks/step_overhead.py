"""What the worker adds to a step: its tokens/s against a plain PyTorch loop, interleaved in one process.

    python benchmarks/step_overhead.py [--rounds 7] [--steps 12] [--overrides model=llama_tiny …]

Both train the same model on the same batches with AdamW, one process. A round times one
after the other, the order alternating; the figure is the median of the rounds' ratios. The worker's side is
`train.loop.Loop` with its metrics and garbage hooks, as `umbel launch` runs it; checkpoints are off.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from results import machine, write_result

from configs.compose import compose
from configs.schema import RunConfig
from data.prepare import prepare
from data.stream import BatchStream, Share
from record.folder import RunFolder
from record.metrics import MetricsWriter
from train import distributed
from train.engine import build_engine
from train.hooks.garbage import ManualGarbageCollection
from train.hooks.metrics import Metrics
from train.loop import Loop
from train.model import build_model
from train.position import Position
from train.stop import StopRequest

WARM_UP = 3
"""Steps before the first round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--overrides", nargs="*", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = compose(
            [
                "experiment=demo",
                f"run.dir={folder}",
                "schedule.steps=100000",
                "parallelism.micro_batch=8",
                *options.overrides,
            ]
        )
        worker, plain = Worker(config), PlainLoop(config, WARM_UP + options.rounds * options.steps)
        for side in (worker, plain):
            side.run(WARM_UP)
        ratios = []
        for turn in range(options.rounds):
            order = (worker, plain) if turn % 2 else (plain, worker)
            rates = {side: side.run(options.steps) for side in order}
            ratios.append(rates[worker] / rates[plain])
            told = f"worker {rates[worker]:.0f}, plain {rates[plain]:.0f} tokens/s, {ratios[-1]:.3f}"
            print(f"round {turn + 1}: {told}")
        distributed.stop()
    result = {
        "median_ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "peer": f"plain PyTorch loop, torch {torch.__version__}",
        "machine": machine(),
    }
    print(f"median ratio worker / plain loop: {result['median_ratio']:.3f}")
    write_result(Path(__file__).stem, result)


class Worker:
    """The real loop on the real engine, a few steps at a time."""

    def __init__(self, config: RunConfig) -> None:
        folder, self.world = RunFolder.of(config).create(), distributed.start(config.cluster)
        stream = BatchStream(prepare(config.data), config)
        sinks = [MetricsWriter(folder, 1).write]
        hooks = [Metrics(config, self.world, sinks, lambda _: None), ManualGarbageCollection()]
        engine, stop = build_engine(config, self.world, 8), StopRequest(folder, polls=True)
        self.loop = Loop(config, self.world, engine, stream, 8, stop, lambda _: False, hooks)
        self.position = Position()

    def run(self, steps: int) -> float:
        began, sequences = time.perf_counter(), self.position.sequences
        self.position = self.loop.run(self.position, None, self.position.step + steps)
        tokens = (self.position.sequences - sequences) * self.loop.config.data.sequence_length
        return tokens / (time.perf_counter() - began)


class PlainLoop:
    """What one would write by hand, as fast as PyTorch alone makes it."""

    def __init__(self, config: RunConfig, steps: int) -> None:
        self.model = build_model(config.model, config.run.seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
        self.bf16 = config.model.precision == "bf16"
        stream, share = BatchStream(prepare(config.data), config), Share(micro_batch=8)
        rows = stream.rows(share)
        self.steps = [stream.micro_batches(rows, step, share) for step in range(1, steps + 1)]
        self.done = 0

    def run(self, steps: int) -> float:
        began, tokens = time.perf_counter(), 0
        for batches in self.steps[self.done : self.done + steps]:
            for batch in batches:
                inputs, labels = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.labels)
                with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                    logits = self.model(input_ids=inputs).logits
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
                (loss / len(batches)).backward()
                tokens += labels.numel()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.done += steps
        return tokens / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
