"""How fast this process's device is: one fixed piece of work, timed now and then without waiting for it.

Steps cannot tell. All processes do them together, so that a slow device makes all of them equally long. The
work needs no other process: what it takes is the device's own.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

SHARE = 0.001
"""Part of the time that it may take."""

SECONDS = 2.0
"""Between two probes, at least."""

_SIZES = {"cuda": (2048, 16, torch.bfloat16), "cpu": (192, 4, torch.float32)}
"""Matrix size, number of products, precision: some tenths of a millisecond."""


class Probe:
    """Times products of two matrices on a device."""

    def __init__(self, device: torch.device) -> None:
        size, self._repeat, dtype = _SIZES[device.type]
        self._cuda = device.type == "cuda"
        # Numbers of all kinds, for products of zeros take less power; and none of the run's random draws.
        self._factor = torch.arange(size * size, device=device).sin().view(size, size).to(dtype)
        self._product = torch.empty_like(self._factor)
        self._pending: deque[tuple[Any, Any]] = deque()
        self._seconds, self._count, self._ran = 0.0, -1, time.monotonic()

    @property
    def told(self) -> tuple[float, int]:
        """Sum of what the probes took in seconds, and their number; those still under way do not count."""
        self._read()
        return (self._seconds, self._count) if self._count > 0 else (0.0, 0)

    def due(self) -> bool:
        """Whether one more would keep within the share."""
        seconds, count = self.told
        wait = seconds / count / SHARE if count else 0.0
        return time.monotonic() - self._ran >= max(SECONDS, wait)

    def run(self) -> None:
        """Do the work once; a device does it when its turn comes, and nobody waits."""
        self._ran = time.monotonic()
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self._work()
            end.record()
            self._pending.append((begin, end))
        else:
            began = time.perf_counter()
            self._work()
            self._add(time.perf_counter() - began)

    @torch.no_grad()
    def _work(self) -> None:
        for _ in range(self._repeat):
            torch.mm(self._factor, self._factor, out=self._product)

    def _read(self) -> None:
        while self._pending and self._pending[0][1].query():
            begin, end = self._pending.popleft()
            self._add(begin.elapsed_time(end) / 1000)

    def _add(self, seconds: float) -> None:
        self._count += 1
        if self._count:  # the first one also loads the kernels
            self._seconds += seconds
