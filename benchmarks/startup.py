"""How long a person waits: for `umbel --help`, and from `umbel launch` to the first step, by part.

    python benchmarks/startup.py [--repeats 7]

The launch is that of experiment=demo with its data already prepared, one process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from results import machine, write_result

from record.events import read_events
from record.folder import RunFolder
from record.metrics import read_metrics

UMBEL = [sys.executable, "-m", "umbel"]
LAUNCH = [
    "launch",
    "--yes",
    "experiment=demo",
    "schedule.steps=2",
    "schedule.warmup_steps=1",
    "parallelism=single",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    helps = [seconds([*UMBEL, "--help"]) for _ in range(repeats)]
    pythons = [seconds([sys.executable, "-c", "pass"]) for _ in range(repeats)]
    print(
        f"umbel --help: {statistics.median(helps):.3f} s (python alone: {statistics.median(pythons):.3f} s)"
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds([*UMBEL, *LAUNCH, "run.name=warm"], Path(folder))
        parts = [first_step(Path(folder), f"run{turn}") for turn in range(max(1, repeats // 2))]
    medians = {name: round(statistics.median(part[name] for part in parts), 2) for name in parts[0]}
    for name, value in medians.items():
        print(f"{name:>28}: {value:.2f} s")
    help_result = {
        "median": round(statistics.median(helps), 3),
        "python_alone": round(statistics.median(pythons), 3),
    }
    write_result("startup", {"help_seconds": help_result, "launch_seconds": medians, "machine": machine()})


def seconds(command: list[str], folder: Path | None = None) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_step(home: Path, name: str) -> dict[str, float]:
    """Seconds from the command to the first step's end, by the phases that the run's events tell."""
    began = time.time()
    seconds([*UMBEL, *LAUNCH, f"run.name={name}"], home)
    folder = RunFolder(home / "runs" / name)
    marks = [("launcher and imports", began)]
    marks += [(event["name"], when(event)) for event in read_events(folder) if event["event"] == "phase"]
    marks.append(("", when(read_metrics(folder)[0])))
    parts: dict[str, float] = {}
    for (part, start), (_, end) in pairwise(marks):
        parts[part] = parts.get(part, 0.0) + end - start
    return {**parts, "total": marks[-1][1] - began}


def when(line: dict[str, str]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


if __name__ == "__main__":
    main()
