"""One tool's measurements: ``python -m peers.measure TOOL FOLDER LENGTH``, a request a line on stdin.

Answers go to stdout. The tool is imported once; each request is served by a fork, whose memory and caches are
its own.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import tokenizers

from peers import Missing, Rows, versions
from peers.packing import AT_A_TIME, ids_of
from peers.speed import BATCH, Material, Mode, Speed, load_speed

BARE = "bare tokenizer"
DEADLINE = 600
"""Seconds for an answer."""

BURST_ROWS, WARM_BURSTS = 64, 4
"""The largest burst: a global batch of Umbel's; and how many are read before the clock starts."""


class Bare:
    """The tokenizer alone, on one thread: texts in memory to arrays of ids, in the order of Umbel's stream,
    because some texts take longer than others."""

    requires = ("tokenizers",)

    def write(self, _material: Material, _mode: Mode) -> None:
        pass

    def open(self, material: Material, mode: Mode, workers: int, at: float | None) -> Iterator[Rows]:
        """With more than one worker others do the same beside it: what one core gives when all work."""
        for _ in range(workers - 1):
            beside = self.open(material, mode, 0, at)
            multiprocessing.get_context("fork").Process(target=deque, args=(beside, 0), daemon=True).start()
        backend = tokenizers.Tokenizer.from_file(str(material.tokenizer))
        found = [text for path in material.texts for text in pq.read_table(path)["text"].to_pylist()]
        texts = cycle([found[number] for number in json.loads(material.order.read_text())])
        while True:
            yield from ids_of(backend, list(islice(texts, AT_A_TIME)))


class Memory(threading.Thread):
    """Watches what this process and its children hold of memory, twice a second.

    Proportional, so that what forks share counts once; without mapped files, which the kernel takes back.
    """

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
            with contextlib.suppress(OSError):
                total += held_by(each.pid)
        self.seen.append(total)

    def end(self) -> None:
        self._ended.set()
        self.join()
        self.look()


def held_by(pid: int) -> int:
    """Bytes; `Documentation/filesystems/proc.rst` of the kernel says what the fields are."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return 1024 * (fields["Pss_Anon"] + fields["Pss_Shmem"])


def read(speed: Speed, material: Material, request: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second after the first bursts, seconds to the first batch, and memory in bytes: the peak,
    and what it was at each quarter of the time. Reads for ``seconds``, and at least ``tokens``.

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
    while end - start < request["seconds"] or tokens < request.get("tokens", 0):
        wanted = tokens + burst
        while tokens < wanted:
            tokens += next(stream).size
        end = time.perf_counter()
    memory.end()
    quarters = [memory.seen[index * (len(memory.seen) - 1) // 4] for index in range(5)]
    rate, peak = tokens / (end - start), max(memory.seen)
    return {"rate": rate, "tokens": tokens, "first": first, "peak": peak, "quarters": quarters}


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


def main(tool: str, folder: str, length: str) -> None:
    material = Material(Path(folder), int(length))
    try:
        speed: Speed = Bare() if tool == BARE else load_speed(tool)
    except Missing as missing:
        print(json.dumps({"missing": str(missing)}), flush=True)
        return
    print(json.dumps({"versions": versions(speed.requires)}), flush=True)
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
