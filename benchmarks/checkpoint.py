"""What a checkpoint costs: Umbel, DeepSpeed, Accelerate and torch.distributed.checkpoint, taking turns.

    python benchmarks/checkpoint.py [--parameters 45e6] [--processes 1] [--rounds 4] [--tools …]
    python benchmarks/checkpoint.py --every-10

Every tool trains the same model with the worker's own loop on one thread a process; only the hook that saves
is the tool's. A round is some steps, a save, and steps while it is written; tools take turns, in an order
that turns too, and figures are medians.

    blocked   seconds for which the loop is held: by the save itself and before the next update
    total     seconds from the save's begin until the disk has it; for tools that never ask the disk, an
              fsync of their files is added
    speed     tokens per second while a save is written, over those without: saves follow one another closely
              for some steps, and what they lose is put down to the time in which one was written
    memory    what the first save adds to the proportional memory of the tool's processes at most
    load      seconds to load on two processes under ZeRO stage 3 (dcp: FSDP2), with all hashes where there
              are some, or why it cannot

With ``--every-10`` only this: steps per second with a save every 10 steps, over those without.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from results import machine, write_result
from savers import TOOLS
from savers.group import Failed, Group, Sampler

from configs.compose import compose
from data.prepare import prepare


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=options.folder) as made:
        folder = Path(made).resolve()
        overrides = [*model(options.parameters), *settings(options, folder)]
        prepare(compose(overrides).data)
        groups = start(options.tools, folder, options.processes, overrides)
        try:
            facts = facts_of(groups, options)
            told = every_ten(groups, options) if options.every_10 else measure_all(groups, options)
            saved = {tool: group.ask("keep")["folder"] for tool, group in groups.items()}
        finally:
            for group in groups.values():
                group.close()
        if not options.every_10:
            for tool, place in saved.items():
                told[tool]["load"] = load(tool, place, folder, overrides)
    print("\n" + (table_every_10 if options.every_10 else table)(told, facts["parameters"]))
    result = {"tools": told, **facts, "machine": machine()}
    if not options.every_10:
        result["goals"] = goals(told, facts["parameters"])
    write_result(options.out or ("checkpoint_every_10" if options.every_10 else "checkpoint"), result)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=45e6)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--zero-stage", type=int, default=2, choices=(1, 2, 3))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="of a process's step")
    parser.add_argument("--every-10", action="store_true", help="only throughput with a save every 10 steps")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--folder", help="on the disk to be measured; default: the temporary one")
    parser.add_argument("--out", help="name of the result")
    return parser.parse_args()


def model(parameters: float) -> list[str]:
    """Overrides that make a BLOOM of about so many parameters."""
    hidden = next(size for limit, size in ((1e8, 512), (8e8, 1024), (1e12, 2048)) if parameters < limit)
    layers = max(1, round((parameters - 8192 * hidden) / (12 * hidden**2)))
    return [
        "experiment=demo",
        f"model.config.hidden_size={hidden}",
        f"model.config.n_layer={layers}",
        f"model.config.n_head={hidden // 64}",
    ]


def settings(options: argparse.Namespace, folder: Path) -> list[str]:
    return [
        "parallelism=zero2",
        f"parallelism.zero_stage={options.zero_stage}",
        f"model.precision={options.precision}",
        # Two rows a process, so that two processes may load what one saved.
        f"data.sequence_length={options.tokens // 2}",
        f"schedule.global_batch={2 * options.processes}",
        f"data.cache_dir={folder / 'data'}",
        "schedule.steps=100000",
        "checkpoint.keep_last=1",
        "evaluation.every=0",
    ]


def start(tools: Sequence[str], folder: Path, processes: int, overrides: Sequence[str]) -> dict[str, Group]:
    """All tools' processes; those that do not run are told and left out."""
    groups = {tool: Group(tool, folder, processes, overrides) for tool in tools}
    for tool, group in list(groups.items()):
        if "error" in group.ready:
            print(f"{tool}: {group.ready['error']}")
            groups.pop(tool).close()
    return groups


def facts_of(groups: dict[str, Group], options: argparse.Namespace) -> dict[str, Any]:
    keys = ("processes", "zero_stage", "precision", "rounds", "tokens")
    return {
        "parameters": next(iter(groups.values())).ready["parameters"],
        "settings": {key: getattr(options, key) for key in keys},
        "versions": {tool: group.ready["versions"] for tool, group in groups.items()},
    }


def measure_all(groups: dict[str, Group], options: argparse.Namespace) -> dict[str, Any]:
    told: dict[str, Any] = warm(groups)
    found: dict[str, dict[str, list[float]]] = {tool: defaultdict(list) for tool in groups}
    for turn in range(options.rounds):
        for tool in turned(list(groups), turn):
            group = groups[tool]
            answer = group.ask("round", before=3, after=4)
            if group.ready["beside"]:
                answer["speed"] = speed_while_writing(group, answer["total"])
            group.ask("clear")
            for name, value in answer.items():
                found[tool][name].append(value)
            print(f"round {turn + 1}  {tool:<28} {in_words(answer)}", flush=True)
    for tool in groups:
        told[tool] |= {name: summary(values) for name, values in found[tool].items()}
    return told


def warm(groups: dict[str, Group]) -> dict[str, Any]:
    """The first save of each; tools that cannot do it are told and left out."""
    told: dict[str, Any] = {}
    for tool, group in list(groups.items()):
        try:
            told[tool] = {"memory": first_save(group)}
        except Failed as error:
            print(f"{tool}: {error}")
            groups.pop(tool).close()
    return told


def first_save(group: Group) -> int:
    """Warms up, and tells how much memory a save adds."""
    group.ask("rate", steps=3, every=0)
    group.ask("rest")
    resting = group.memory()
    sampler = Sampler(group)
    sampler.start()
    group.ask("save")
    added = sampler.end() - resting
    group.ask("rate", steps=4, every=2)
    group.ask("clear")
    print(f"first    {group.tool:<28} +{added / 1e6:.0f} MB", flush=True)
    return added


def speed_while_writing(group: Group, total: float) -> float:
    """Saves with a little more time between them than one takes, against steps without, before and after."""
    rates = [group.ask("rate", steps=6, every=0)["rate"]]
    every = math.ceil(1.2 * total * rates[0])
    while_saving = group.ask("rate", steps=every * math.ceil(12 / every), every=every)["rate"]
    rates.append(group.ask("rate", steps=6, every=0)["rate"])
    without = statistics.mean(rates)
    lost = 1 - while_saving / without
    return 1 - lost * max(1.0, every / (total * without))


def every_ten(groups: dict[str, Group], options: argparse.Namespace) -> dict[str, Any]:
    """Rates with a save every 10 steps over the mean of those without, before and after."""
    ratios, rates = defaultdict(list), defaultdict(list)
    warm(groups)
    for turn in range(options.rounds):
        for tool in turned(list(groups), turn):
            found = [groups[tool].ask("rate", steps=30, every=every)["rate"] for every in (0, 10, 0)]
            groups[tool].ask("clear")
            without = statistics.mean((found[0], found[2]))
            ratios[tool].append(found[1] / without)
            rates[tool].append(without)
            print(f"round {turn + 1}  {tool:<28} {ratios[tool][-1]:.1%} of the speed", flush=True)
    return {
        tool: {"every_10": summary(ratios[tool]), "steps_per_second": summary(rates[tool])} for tool in groups
    }


def load(tool: str, place: str, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Load a save on two processes under ZeRO stage 3."""
    group = Group(tool, folder, 2, [*overrides, "parallelism.zero_stage=3"])
    try:
        answer = group.ready if "error" in group.ready else group.ask("load", folder=place)
    except Failed as error:
        answer = {"error": str(error)}
    finally:
        group.close()
    print(f"load     {tool:<28} {loading(answer)}", flush=True)
    return answer


def turned(tools: list[str], turn: int) -> Iterable[str]:
    first = turn % len(tools)
    return tools[first:] + tools[:first]


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 4),
        "values": [round(value, 4) for value in values],
    }


def in_words(answer: dict[str, Any]) -> str:
    text = f"blocked {answer['blocked']:.3f} s, total {answer['total']:.2f} s, {answer['bytes'] / 1e6:.0f} MB"
    return text + (f", {answer['speed']:.1%} of the speed" if "speed" in answer else "")


def table(tools: dict[str, Any], parameters: int) -> str:
    lines = [
        "| | blocked | total | bytes a parameter | speed while writing | memory | load |",
        "|---|---|---|---|---|---|---|",
    ]
    for tool, told in tools.items():
        cells = [
            tool,
            f"{told['blocked']['median']:.3f} s",
            f"{told['total']['median']:.2f} s",
            f"{told['bytes']['median'] / parameters:.2f}",
            percent(told.get("speed")),
            f"+{told['memory'] / 1e6:.0f} MB",
            loading(told["load"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_every_10(tools: dict[str, Any], _parameters: int) -> str:
    lines = ["| | step | speed with a save every 10 steps |", "|---|---|---|"]
    for tool, told in tools.items():
        step = 1 / told["steps_per_second"]["median"]
        lines.append(f"| {tool} | {step:.2f} s | {percent(told['every_10'])} |")
    return "\n".join(lines)


def goals(tools: dict[str, Any], parameters: int) -> dict[str, Any]:
    """What Umbel is to reach, where all that it takes was measured."""
    ours, deepspeed = tools.get("umbel"), tools.get("deepspeed")
    found: dict[str, tuple[float, str, bool]] = {}
    if ours is None:
        return {}
    if deepspeed is not None:
        share = ours["blocked"]["median"] / deepspeed["blocked"]["median"]
        found["blocked over deepspeed's"] = (share, "under 0.05", share < 0.05)
    others = [told["blocked"]["median"] for tool, told in tools.items() if tool.startswith("dcp")]
    if others:
        share = ours["blocked"]["median"] / min(others)
        found["blocked over the best dcp's"] = (share, "under 1", share < 1)
    share = ours["bytes"]["median"] / parameters
    found["bytes a parameter"] = (share, "12 and headers", share < 12.1)
    speed = ours["speed"]["median"]
    found["speed while writing"] = (speed, "at least 0.97", speed >= 0.97)
    for name, (value, goal, met) in found.items():
        print(f"{name}: {value:.3f} (goal: {goal}){'' if met else ', MISSED'}")
    return {
        name: {"value": round(value, 4), "goal": goal, "met": met}
        for name, (value, goal, met) in found.items()
    }


def percent(told: dict[str, Any] | None) -> str:
    return f"{told['median']:.1%}" if told else "–"


def loading(told: dict[str, Any] | None) -> str:
    if told is None:
        return "–"
    return f"{told['seconds']:.2f} s" if "seconds" in told else f"cannot: {told['error']}"


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"{time.perf_counter() - began:.0f} s in all")
