"""One tool's measurements: ``python -m peers.measure TOOL FOLDER LENGTH``, requests on stdin, answers on stdout.

The tool is imported once; each request is served by a fork, whose memory and caches are its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import tokenizers

from peers import Missing, Rows
from peers.packing import AT_A_TIME, ids_of
from peers.speed import BATCH, Material, Mode, Speed, load_speed

BARE = "bare tokenizer"
DEADLINE = 120
"""Seconds for an answer."""

BURST_ROWS, WARM_BURSTS = 64, 4
"""The largest burst: a global batch of Umbel's; and how many are read before the clock starts."""


class Bare:
    """The tokenizer alone, on one thread: texts in memory to arrays of ids."""

    requires = ("tokenizers",)

    def write(self, material: Material, mode: Mode) -> None:
        pass

    def open(self, material: Material, mode: Mode, workers: int, at: float | None) -> Iterator[Rows]:
        backend = tokenizers.Tokenizer.from_file(str(material.tokenizer))
        texts = cycle([text for path in material.texts for text in pq.read_table(path)["text"].to_pylist()])
        while True:
            yield from ids_of(backend, list(islice(texts, AT_A_TIME)))


class Memory(threading.Thread):
    """Watches the proportional set size of this process and its children, twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[int] = []
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.5):
            self.look()

    def look(self) -> None:
        process, total = psutil.Process(), 0
        for each in [process, *process.children(recursive=True)]:
            try:
                total += each.memory_full_info().pss
            except psutil.Error:
                continue
        self.seen.append(total)

    def end(self) -> None:
        self._ended.set()
        self.join()
        self.look()


def read(speed: Speed, material: Material, request: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second after the first bursts, seconds to the first batch, and memory in bytes: the peak, and
    how much of it came in the second half.

    What a tool makes ahead comes in bursts; the clock runs between the ends of two.
    """
    began = time.perf_counter()
    stream = speed.open(material, request["mode"], request["workers"], None)
    next(stream)
    first = time.perf_counter() - began
    burst, tokens = BURST_ROWS * material.length, BATCH * material.length
    while tokens < WARM_BURSTS * burst:
        tokens += next(stream).size
    memory = Memory()
    memory.start()
    start, tokens, end = time.perf_counter(), 0, 0.0
    while end - start < request["seconds"]:
        wanted = tokens + burst
        while tokens < wanted:
            tokens += next(stream).size
        end = time.perf_counter()
    memory.end()
    seen = memory.seen
    growth = seen[-1] - seen[len(seen) // 2 - 1] if len(seen) > 2 else 0
    return {"rate": tokens / (end - start), "first": first, "peak": max(seen), "growth": growth}


def resume(speed: Speed, material: Material, request: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    next(iter(speed.open(material, request["mode"], 0, request["at"])))
    return {"seconds": time.perf_counter() - began}


def write(speed: Speed, material: Material, request: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    speed.write(material, request["mode"])
    return {"seconds": time.perf_counter() - began}


def serve(speed: Speed, material: Material, request: dict[str, Any], out: Any) -> None:
    """The body of a fork."""
    os.dup2(2, 1)
    doing = {"read": read, "resume": resume, "write": write}[request["do"]]
    try:
        facts = doing(speed, material, request)
    except Exception as error:
        facts = {"error": f"{type(error).__name__}: {error}"}
    out.send(facts)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    # Threads of the libraries, and their hooks at exit, may wait for rows that nobody takes.
    os._exit(0)


def versions(speed: Speed) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in speed.requires:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "of this repository"
    return found


def main(tool: str, folder: str, length: str) -> None:
    material = Material(Path(folder), int(length))
    try:
        speed: Speed = Bare() if tool == BARE else load_speed(tool)
    except Missing as missing:
        print(json.dumps({"missing": str(missing)}), flush=True)
        return
    print(json.dumps({"versions": versions(speed)}), flush=True)
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=serve, args=(speed, material, json.loads(line), sender))
        process.start()
        sender.close()
        try:
            facts = receiver.recv() if receiver.poll(DEADLINE) else {"error": "it hangs"}
        except EOFError:
            facts = {"error": "its process died"}
        process.kill()
        process.join()
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
