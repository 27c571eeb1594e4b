"""How fast a node multiplies matrices, on all of its devices at once, and whether twice gives the same."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

CUDA_SIZE, CPU_SIZE = 8192, 1024
SECONDS = 0.3
"""Of work on each device, once warm."""


class Rates(NamedTuple):
    """TFLOP/s by device, those that their makers print where they are known, threads, and what went wrong."""

    rates: list[float]
    peaks: list[float]
    threads: int
    errors: list[str]


def rates(cpu: bool) -> Rates:
    """Multiply: bf16 on every CUDA device, or fp32 on this process's cores where ``cpu`` or there is none."""
    import torch

    if cpu or not torch.cuda.is_available():
        return Rates([_on_cpu(torch)], [], torch.get_num_threads(), [])
    return _on_cuda(torch)


def _on_cpu(torch: Any) -> float:
    """The best of several, by the time that the cores had for it: others may be at work here, too."""
    a, b = torch.randn(2, CPU_SIZE, CPU_SIZE)
    out, best, until = torch.empty_like(a), float("inf"), time.perf_counter() + SECONDS
    torch.matmul(a, b, out=out)
    while time.perf_counter() < until:
        began = time.process_time()
        torch.matmul(a, b, out=out)
        best = min(best, time.process_time() - began)
    return 2 * CPU_SIZE**3 * torch.get_num_threads() / best / 1e12


def _on_cuda(torch: Any) -> Rates:
    from train.flops import peak_flops

    works, errors, found = [], [], []
    for index in range(torch.cuda.device_count()):
        try:
            works.append(_Work(torch, index))
        except RuntimeError as error:
            errors.append(_words(index, error))
    for work in works:  # all at once: power and heat are those of training
        work.start()
    for work in works:
        try:
            found.append(work.rate())
        except RuntimeError as error:
            errors.append(_words(work.index, error))
    peaks = [peak_flops(torch.cuda.get_device_name(work.index)) for work in works]
    return Rates(found, [peak / 1e12 for peak in peaks if peak], 0, errors)


class _Work:
    """A row of equal products on one device."""

    def __init__(self, torch: Any, index: int) -> None:
        self.torch, self.index = torch, index
        like = {"device": f"cuda:{index}", "dtype": torch.bfloat16}
        self.a, self.b = (torch.randn(CUDA_SIZE, CUDA_SIZE, **like) for _ in range(2))
        self.first, self.out = torch.matmul(self.a, self.b), torch.empty_like(self.a)
        self.began, self.ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.times = 3
        self.start()
        self.times = max(3, min(1000, int(SECONDS / self._seconds())))

    def start(self) -> None:
        with self.torch.cuda.device(self.index):
            self.began.record()
            for _ in range(self.times):
                self.torch.matmul(self.a, self.b, out=self.out)
            self.ended.record()

    def rate(self) -> float:
        """TFLOP/s.

        Raises:
            RuntimeError: the device fails, or gives other numbers than before.
        """
        seconds = self._seconds()
        if not self.torch.equal(self.first, self.out):
            raise RuntimeError("the same product gives other numbers")
        return float(2 * CUDA_SIZE**3 / seconds / 1e12)

    def _seconds(self) -> float:
        self.ended.synchronize()
        return float(self.began.elapsed_time(self.ended)) / 1000 / self.times


def _words(index: int, error: RuntimeError) -> str:
    return f"device {index}: matmul: {str(error).splitlines()[0]}"
