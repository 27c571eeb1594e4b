"""Who goes on with exactly the next rows when the cluster changes: every tool through the same test.

    python benchmarks/elasticity.py [--tools "umbel streaming" mosaic …] [--out table.md]

Each token is a number that tells its source, document and offset. A run of one epoch is cut into four
segments; each rank of a segment is a process of its own, and all that passes to the next segment is JSON. In
each test one thing changes from segment to segment. What every global step holds is compared with a run of
the first segment's kind that nothing interrupted, and documents are counted.

The peers are optional: benchmarks/peers/README.md says how to install them. A missing one is told and left
out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from peers import ADAPTERS, Adapter, Corpus, Missing, Rows, Wish, load, versions
from peers.segment import Refused, Segment, read_segment
from results import machine, write_result

GLOBAL_BATCH, LENGTH, STEPS = 24, 16, 60
SIZES = {"large": 720, "middle": 480, "small": 240}
"""Rows of each source: an epoch of all of them is `STEPS` whole batches, so that no tool has to pad."""

ODD = {"large": 721, "middle": 482, "small": 244}
"""Seven rows more: a last batch that is not full."""

END = 200
"""Steps that are asked for where an epoch is read to its end; Umbel, which has none, gives them all."""


@dataclass(frozen=True)
class Test:
    """What is changed from segment to segment, and what is on."""

    name: str
    segments: tuple[Segment, ...]
    corpus: str = "rows"
    filtered: bool = False

    @property
    def packed(self) -> bool:
        return self.corpus == "varied"

    def wish(self, first: int, stop: int) -> Wish:
        return Wish(first, stop, GLOBAL_BATCH, self.filtered, self.packed)


def tests() -> list[Test]:
    def changing(stops: Sequence[int] = (13, 29, 41, END), **lists: list[int]) -> tuple[Segment, ...]:
        return tuple(
            replace(Segment(stop), **{key: values[index] for key, values in lists.items()})
            for index, stop in enumerate(stops)
        )

    return [
        Test("resume", changing()),
        Test("world size", changing(world_size=[1, 4, 6, 24], batch=[24, 6, 4, 1], workers=[0] * 4)),
        Test("workers", changing(workers=[1, 2, 0, 2])),
        Test("micro-batch", changing(batch=[12, 4, 6, 2])),
        Test("all at once", drawn((13, 29, 41, END))),
        Test("with a filter", changing((7, 13, 22, END)), filtered=True),
        Test("while packing", changing(), corpus="varied"),
        Test("odd end", changing((29, END), world_size=[4, 4], batch=[6, 6], workers=[2, 2]), corpus="odd"),
    ]


def drawn(stops: tuple[int, ...], seed: int = 5) -> tuple[Segment, ...]:
    """Topologies at random."""
    draw, made = random.Random(seed), []
    for stop in stops:
        world_size = draw.choice([1, 2, 3, 4, 6, 8, 12])
        share = GLOBAL_BATCH // world_size
        batch = draw.choice([size for size in range(1, share + 1) if share % size == 0])
        made.append(Segment(stop, world_size, draw.choice([0, 1, 2]), batch))
    return tuple(made)


def make_corpus(kind: str) -> Corpus:
    """Documents of a row each, or of varied lengths with as many tokens on average."""
    draw, token, sources = random.Random(0), 1, {}
    for name, count in (ODD if kind == "odd" else SIZES).items():
        sources[name] = []
        for _ in range(count):
            size = draw.randint(1, 2 * LENGTH - 1) if kind == "varied" else LENGTH
            sources[name].append(list(range(token, token + size)))
            token += size
    return Corpus(sources, LENGTH)


# One test ---------------------------------------------------------------------------------------------


def judge(adapter: Adapter, folder: Path, test: Test) -> dict[str, Any]:
    """What a test finds: ``verdict`` same, differs, refuses, breaks, fails (without a resume) or none."""
    if (test.filtered and not adapter.filters) or (test.packed and not adapter.packs):
        return {"verdict": "none"}
    given, first = make_corpus(test.corpus), test.segments[0]
    whole = replace(first, stop=END)
    try:
        reference, _ = read_segment(adapter, folder, whole, test.wish(0, END), None)
    except Refused as refused:
        return {"verdict": "fails", "why": str(refused)}
    found: list[Rows] = []
    states, done = None, 0
    for segment in test.segments:
        try:
            steps, states = read_segment(adapter, folder, segment, test.wish(done, segment.stop), states)
        except Refused as refused:
            return {"verdict": refused.verdict, "why": str(refused), "after": done}
        found, done = found + steps, segment.stop
    same = sum(equal(*pair, exactly=adapter.slots) for pair in zip(reference, found, strict=False))
    passes = same == len(reference) == len(found)
    return {
        "verdict": "same" if passes else "differs",
        "same_steps": same,
        "steps": len(reference),
        **counted(adapter, folder, test, given, found),
        "uninterrupted": counted(adapter, folder, test, given, reference),
        "off_share": off_share(given, found[: STEPS // 2]),
    }


def equal(one: Rows, other: Rows, *, exactly: bool) -> bool:
    """Whether a step holds the same rows; where the tool gives rows a place in the step, in the same one."""
    if exactly:
        return np.array_equal(one, other)
    one, other = (rows[np.lexsort(rows.T[::-1])] for rows in (one, other))
    return np.array_equal(one, other)


def counted(adapter: Adapter, folder: Path, test: Test, given: Corpus, steps: list[Rows]) -> dict[str, int]:
    """Documents with a token that the first epoch gave twice, and with one that it did not give."""
    epoch = adapter.epoch(np.concatenate(steps), given, folder, test.wish(0, END))
    seen = Counter(epoch.ravel().tolist())
    repeated = lost = 0
    for documents in given.sources.values():
        for document in documents[:: 2 if test.filtered else 1]:
            counts = [seen[token] for token in document]
            repeated += max(counts) > 1
            lost += min(counts) < 1
    return {"repeated": repeated, "lost": lost}


def off_share(given: Corpus, steps: list[Rows]) -> dict[str, float]:
    """How far each source is from its share of the rows, in standard deviations of a fair draw."""
    tokens = np.concatenate(steps).max(axis=1)
    told = {}
    for name, documents in given.sources.items():
        share = given.weights()[name]
        count = ((tokens >= documents[0][0]) & (tokens <= documents[-1][-1])).sum()
        deviation = (len(tokens) * share * (1 - share)) ** 0.5
        told[name] = round(float(count - share * len(tokens)) / deviation, 2)
    return told


# One tool, in a process of its own --------------------------------------------------------------------


def try_tool(name: str, chosen: list[str]) -> dict[str, Any]:
    adapter = load(name)
    told: dict[str, Any] = {"versions": versions(adapter.requires), "mixes": adapter.mixes, "tests": {}}
    with tempfile.TemporaryDirectory() as made:
        for kind in ("rows", "varied", "odd"):
            task = (adapter, Path(made) / kind, make_corpus(kind))
            writer = multiprocessing.get_context("fork").Process(target=write, args=task)
            writer.start()
            writer.join()
            if writer.exitcode:
                raise RuntimeError(f"{name} could not write the corpus")
        for test in tests():
            if chosen and test.name not in chosen:
                continue
            began = time.monotonic()
            cell = judge(adapter, Path(made) / test.corpus, test)
            told["tests"][test.name] = cell
            seconds = f"{time.monotonic() - began:5.1f} s"
            print(f"{name:>20}  {test.name:<14} {seconds}  {in_words(cell)}", flush=True)
    return told


def write(adapter: Adapter, folder: Path, corpus: Corpus) -> None:
    """In a process of its own: what a library leaves running there must not be forked into the ranks."""
    folder.mkdir(parents=True)
    lengths = {len(ids) for documents in corpus.sources.values() for ids in documents}
    if adapter.packs or lengths == {corpus.length}:
        adapter.write(folder, corpus)


def in_words(cell: dict[str, Any]) -> str:
    if cell["verdict"] == "none":
        return "has none"
    if "why" in cell:
        return f"{cell['verdict']}: {cell['why'][:90]}"
    text = f"{cell['verdict']}, {cell['same_steps']} of {cell['steps']} steps"
    own = cell["uninterrupted"]
    text = f"{text}, {cell['repeated']} repeated, {cell['lost']} lost"
    return f"{text} (uninterrupted: {own['repeated']}, {own['lost']})"


# All tools --------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """Markdown: tools down, tests across."""
    names = [test.name for test in tests() if test.corpus != "odd"]
    head = ["tool", *names, "each once", "mixture"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for tool, told in results.items():
        cells = [short(told["tests"].get(name)) for name in names]
        lines.append("| " + " | ".join([tool, *cells, each_once(told["tests"]), mixture(told)]) + " |")
    return "\n".join(lines) + "\n"


def short(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["verdict"] == "differs":
        return f"differs: {cell['repeated']} repeated, {cell['lost']} lost"
    return "–" if cell["verdict"] == "none" else str(cell["verdict"])


def each_once(cells: dict[str, Any]) -> str:
    """What an epoch that nothing interrupts gives twice or not at all, at worst."""
    told = [cell["uninterrupted"] for cell in cells.values() if "uninterrupted" in cell]
    repeated, lost = (max((each[key] for each in told), default=0) for key in ("repeated", "lost"))
    return f"{repeated} repeated, {lost} lost" if repeated or lost else "yes"


def mixture(told: dict[str, Any]) -> str:
    """Whether half an epoch holds each source's share, at least as well as a fair draw would."""
    cell = told["tests"].get("resume", {})
    if not told["mixes"]:
        return "–"
    if "off_share" not in cell:
        return ""
    worst = max(map(abs, cell["off_share"].values()))
    return f"{'held' if worst <= 3 else 'missed'} ({worst:.1f} σ)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", nargs="*", default=list(ADAPTERS), choices=list(ADAPTERS))
    parser.add_argument("--tests", nargs="*", default=[], help="only these, and no result is written")
    parser.add_argument("--out", help="write the table there too")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.tools[0], options.tests, Path(options.alone))
        return
    results: dict[str, Any] = {}
    for tool in options.tools:
        with tempfile.TemporaryDirectory() as made:
            out = Path(made) / "told.json"
            command = [sys.executable, __file__, "--tools", tool, "--alone", str(out), "--tests"]
            subprocess.run([*command, *options.tests], check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if out.is_file():
                results[tool] = json.loads(out.read_text())
    print("\n" + table(results))
    if options.out:
        Path(options.out).write_text(table(results))
    if not options.tests:
        segments = {test.name: [asdict(segment) for segment in test.segments] for test in tests()}
        write_result("elasticity", {"tools": results, "tests": segments, "machine": machine()})


def alone(tool: str, chosen: list[str], out: Path) -> None:
    try:
        told = try_tool(tool, chosen)
    except Missing as missing:
        sys.exit(str(missing))
    out.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
