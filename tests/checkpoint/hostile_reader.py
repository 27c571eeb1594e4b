"""Reads checkpoints that may be hostile, and tells of each what became of it: a child of test_hostile.py.

    python hostile_reader.py SAMPLE

A folder per line of stdin, an answer in JSON per line of stdout. SAMPLE is a good one, read first, so that
every module is imported before anybody counts what is opened.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from base.errors import UmbelError
from checkpoint.reader import StateReader
from checkpoint.verify import verify

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
FORBIDDEN = (
    "os.", "shutil.", "subprocess.", "socket.", "pickle.", "marshal.", "ctypes.", "import", "exec", "compile",
    "mmap.", "pty.", "tempfile.",
)  # fmt: skip
LOOKING = ("os.listdir", "os.scandir")
ROOM = 1 << 30


class Watch:
    """What this process touches that is not the folder it was told to read."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.touched: list[str] = []
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = arguments
            if not str(path).startswith(f"{self.folder}/") or ".." in str(path) or flags & WRITING:
                self.touched.append(f"open {path} {flags:o}")
        elif event in LOOKING:
            if str(arguments[0]) != self.folder:
                self.touched.append(f"{event} {arguments[0]}")
        elif event.startswith(FORBIDDEN):
            self.touched.append(f"{event} {arguments!r:.200}")


def refusal_of(action: Callable[[], object]) -> str:
    """The one line that says no; empty for yes; CRASH for anything else."""
    try:
        action()
    except UmbelError as error:
        line = str(error)
        return line if line.isprintable() and 0 < len(line) < 1000 else f"CRASH: no line: {line[:300]!r}"
    except BaseException as error:
        return f"CRASH: {type(error).__name__}: {error!s:.300}"
    return ""


def read_everything(folder: Path, found: dict[str, str]) -> None:
    with StateReader(folder) as reader:
        for name, kind in reader.tensors():
            found[f"{name}|{kind}"] = sha256(reader.read(name, kind)).hexdigest()


def answer(folder: Path, watch: Watch) -> dict[str, Any]:
    read: dict[str, str] = {}
    tracemalloc.reset_peak()
    before, began = tracemalloc.get_traced_memory()[0], time.perf_counter()
    watch.folder, watch.touched = str(folder), []
    full = refusal_of(lambda: verify(folder))
    finite = refusal_of(lambda: verify(folder, "finite"))
    refused = refusal_of(lambda: read_everything(folder, read))
    watch.folder = None
    return {
        "full": full,
        "finite": finite,
        "reader": refused,
        "read": read,
        "touched": watch.touched,
        "seconds": time.perf_counter() - began,
        "peak": tracemalloc.get_traced_memory()[1] - before,
    }


def main(sample: Path) -> None:
    watch = Watch()
    tracemalloc.start()
    answer(sample, watch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    for line in sys.stdin:
        print(json.dumps(answer(Path(line.rstrip("\n")), watch)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
