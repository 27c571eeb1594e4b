"""Tokens per second of the data alone, on the fly and prepared: Umbel, its peers, and the bare tokenizer.

    python benchmarks/data_throughput.py [--mb 100] [--repeats 5] [--seconds 4] [--tools umbel mosaic …]

The text is what is installed on this machine (benchmarks/corpus.py), the tokenizer a BPE of 8192 trained on
8 MB of it, a sequence 2048 tokens. Each measurement is a process of its own, forked from one that has done
the tool's imports; measurements of the tools take turns, each reads for ``--seconds`` after a warm-up.
Figures are medians, with the lowest and highest.

The peers are optional: benchmarks/peers/README.md says how to install them. A missing one is told and left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from peers.measure import BARE
from peers.speed import TOOLS, Material, Mode
from results import machine, write_result

LENGTH, VOCABULARY, TRAIN_BYTES = 2048, 8192, 8_000_000
TEXT_FILES = 8
WORKERS = (0, 1, 2)
MODES: tuple[Mode, ...] = ("streaming", "prepared")
HOUR = 3600 * 60_000
"""Tokens that a fast GPU trains on in an hour."""
SOAK_SECONDS = 20
"""At least."""
BARE_TIMES = {0: 0, 1: 0, 2: 2}
"""Workers of a tool that streams: those of the bare tokenizer it is held against."""
PROBES = (0.01, 0.5, 0.99)

Samples = dict[tuple[str, str, int], list[dict[str, Any]]]
"""What was found, round by round, by tool, mode and workers."""


class Server:
    """The process of one tool: does its imports once, and forks for each measurement."""

    def __init__(self, tool: str, material: Material) -> None:
        command = [sys.executable, "-m", "peers.measure", tool, str(material.folder), str(material.length)]
        here = Path(__file__).resolve().parent
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        self.tool = tool
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.facts = self._line()

    @property
    def is_missing(self) -> bool:
        return "missing" in self.facts

    def ask(self, **request: Any) -> dict[str, Any]:
        """Have one measurement done."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._line()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.tool} ended")
        facts: dict[str, Any] = json.loads(line)
        return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=float, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--soak", type=float, default=HOUR, help="tokens read while memory is watched")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--out", default="data_throughput", help="name of the result")
    options = parser.parse_args()
    tools = ["umbel", *(tool for tool in options.tools if tool != "umbel")]
    with tempfile.TemporaryDirectory(prefix="throughput-") as made:
        material = Material(Path(made), LENGTH)
        facts = write_material(material, options.mb)
        servers = {tool: Server(tool, material) for tool in [BARE, *tools]}
        for tool, server in list(servers.items()):
            if server.is_missing:
                print(server.facts["missing"])
                del servers[tool]
        try:
            result = measure_all(servers, options.repeats, options.seconds, options.soak)
        finally:
            for server in servers.values():
                server.close()
    print("\n" + table(result))
    versions = {tool: server.facts["versions"] for tool, server in servers.items()}
    settings = {"sequence_length": LENGTH, "vocabulary": VOCABULARY, "repeats": options.repeats}
    everything = {**result, "text": facts, "versions": versions, "settings": settings, "machine": machine()}
    write_result(options.out, everything)


def write_material(material: Material, megabytes: float) -> dict[str, Any]:
    """Texts in Parquet files, and the tokenizer."""
    from corpus import texts

    from data.tokens.tokenizer import train_tokenizer

    began = time.perf_counter()
    found = texts(megabytes)
    sample, size = [], 0
    for text in found:
        sample.append(text)
        size += len(text.encode())
        if size >= TRAIN_BYTES:
            break
    train_tokenizer(sample, VOCABULARY).save(material.tokenizer.parent)
    (material.folder / "texts").mkdir()
    for index in range(TEXT_FILES):
        table = pa.table({"text": found[index::TEXT_FILES]})
        pq.write_table(table, material.folder / "texts" / f"{index}.parquet", row_group_size=1000)
    total = sum(len(text.encode()) for text in found) / 1e6
    told = {"megabytes": round(total, 1), "documents": len(found)}
    print(f"{total:.0f} MB in {len(found)} texts, {time.perf_counter() - began:.0f} s", flush=True)
    return told


def measure_all(servers: dict[str, Server], repeats: int, seconds: float, soak: float) -> dict[str, Any]:
    """Everything, told as it comes."""
    tools = [tool for tool in servers if tool != BARE]
    writing = {
        mode: {tool: servers[tool].ask(do="write", mode=mode) for tool in tools} for mode in reversed(MODES)
    }
    starts = {
        mode: {tool: servers[tool].ask(do="resume", mode=mode, at=None) for tool in tools} for mode in MODES
    }
    print("written", flush=True)
    samples: Samples = defaultdict(list)
    for turn in range(repeats):
        for mode, workers in product(MODES, WORKERS):
            with_bare = mode == "streaming" and workers in BARE_TIMES.values()
            present = [BARE, *tools] if with_bare else tools
            for tool in present[turn % len(present) :] + present[: turn % len(present)]:
                found = servers[tool].ask(do="read", mode=mode, workers=workers, seconds=seconds)
                samples[tool, mode, workers].append(found)
        print(f"round {turn + 1} of {repeats}", flush=True)
    rates: dict[str, Any] = defaultdict(dict)
    for (tool, mode, workers), found in samples.items():
        rates[f"{mode}, {workers} workers"][tool] = summary(found)
    resumes = {
        mode: {
            tool: {f"{at:.0%}": servers[tool].ask(do="resume", mode=mode, at=at) for at in PROBES}
            for tool in tools
        }
        for mode in MODES
    }
    return {
        "rates": rates,
        "ratios": ratios(samples, tools),
        "writing": writing,
        "first_start": starts,
        "resume": resumes,
        "soak": {mode: soaked(servers["umbel"], mode, soak) for mode in MODES} if soak else {},
    }


def soaked(server: Server, mode: Mode, tokens: float) -> dict[str, Any]:
    """What memory does over a longer run: MiB at each quarter of it."""
    found = server.ask(do="read", mode=mode, workers=2, seconds=SOAK_SECONDS, tokens=tokens)
    quarters = [round(each / 2**20) for each in found.get("quarters", [])]
    return {"tokens": found.get("tokens"), "mib": quarters, "tokens_per_second": round(found.get("rate", 0))}


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians; of the rate the spread too. A fault stands for the whole."""
    if faults := [each["error"] for each in found if "error" in each]:
        return {"error": faults[0]}
    rates = [each["rate"] for each in found]
    return {
        "tokens_per_second": round(statistics.median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "first_batch_seconds": round(statistics.median(each["first"] for each in found), 3),
        "peak_mib": round(statistics.median(each["peak"] for each in found) / 2**20),
    }


def ratios(samples: Samples, tools: list[str]) -> dict[str, dict[str, float]]:
    """Umbel against the bare tokenizer on as many cores, and against the best peer.

    Medians of the rounds' own ratios: a round's measurements lie seconds apart, and machines drift.
    """
    told: dict[str, dict[str, float]] = {}
    cores = len(os.sched_getaffinity(0))
    for mode, workers in product(MODES, WORKERS):
        name, ours = f"{mode}, {workers} workers", rates_of(samples, "umbel", mode, workers)
        peers = {tool: rates_of(samples, tool, mode, workers) for tool in tools if tool != "umbel"}
        told[name] = {f"to_{tool}": paired(ours, rates) for tool, rates in peers.items() if any(rates)}
        if mode == "streaming":
            bare = rates_of(samples, BARE, mode, BARE_TIMES[workers])
            told[name]["to_bare_tokenizer_per_core"] = paired(ours, bare, min(max(workers, 1), cores))
    return told


def rates_of(samples: Samples, tool: str, mode: str, workers: int) -> list[float]:
    """Tokens per second, round by round; 0 where it failed."""
    return [found.get("rate", 0.0) for found in samples[tool, mode, workers]]


def paired(ours: list[float], theirs: list[float], cores: int = 1) -> float:
    found = [one / other / cores for one, other in zip(ours, theirs, strict=True) if other]
    return round(statistics.median(found), 3)


def table(result: dict[str, Any]) -> str:
    """Markdown: what is read down, tools across."""
    rates = result["rates"]
    tools = list(dict.fromkeys(tool for found in rates.values() for tool in found))
    lines = ["| tokens/s | " + " | ".join(tools) + " |", "|---" * (len(tools) + 1) + "|"]
    for name in (f"{mode}, {workers} workers" for mode, workers in product(MODES, WORKERS)):
        lines.append(row(name, (in_words(rates[name].get(tool)) for tool in tools)))
    for mode in MODES:
        first = rates[f"{mode}, 0 workers"]
        lines.append(row(f"{mode}: first batch", (seconds(first.get(tool)) for tool in tools)))
        resume = result["resume"][mode]
        found = (
            " / ".join(
                f"{each['seconds']:.2f}" if "seconds" in each else "error"
                for each in resume.get(tool, {}).values()
            )
            for tool in tools
        )
        lines.append(row(f"{mode}: resume at 1/50/99 %, s", found))
        lines.append(row(f"{mode}: peak MiB", (memory(first.get(tool)) for tool in tools)))
    lines += ["", *(f"soak, {mode}: {told}" for mode, told in result["soak"].items())]
    lines += ["", *(f"{name}: {ratio}" for name, ratio in result["ratios"].items())]
    return "\n".join(lines) + "\n"


def row(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def in_words(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "error" in found:
        return "error"
    rate, low, high = (found[key] / 1e6 for key in ("tokens_per_second", "lowest", "highest"))
    return f"{rate:.3f}M ({low:.3f}–{high:.3f})"


def seconds(found: dict[str, Any] | None) -> str:
    return "" if not found or "error" in found else f"{found['first_batch_seconds']:.2f} s"


def memory(found: dict[str, Any] | None) -> str:
    return "" if not found or "error" in found else str(found["peak_mib"])


if __name__ == "__main__":
    main()
