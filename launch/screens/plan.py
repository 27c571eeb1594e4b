"""A plan as it looks on a terminal: facts, memory by part with bars, a verdict; 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from base.files import human_bytes
from launch.screens.numbers import duration, short

if TYPE_CHECKING:
    from launch.plan import Plan

PART_NAMES = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "loss": "logits and loss",
    "working": "backward pass",
    "buffers": "communication",
    "snapshot": "copy to save from",
}
"""Parts of `train.memory.Memory` in the order and the words of the screen."""

_BAR = 26  # characters


def render(plan: Plan) -> RenderableType:
    """A plan for people; fits 80 columns."""
    notes = [Text.assemble(("warning: ", "yellow"), warning) for warning in _all_warnings(plan)]
    parts: list[RenderableType] = [
        _facts(plan),
        Text(),
        Text(f"Memory of one process, with {plan.micro_batch} × {plan.sequence_length} tokens", style="bold"),
        Padding(_memory_table(plan), (0, 0, 0, 2)),
        Padding(_verdict(plan), (0, 0, 0, 2)),
    ]
    return Group(*parts, *([Text(), *notes] if notes else []))


def _facts(plan: Plan) -> Table:
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    rows = [
        ("run", plan.run),
        ("model", _model_fact(plan)),
        ("processes", f"{plan.world_size}, {plan.parallelism}, {plan.precision}"),
        ("batch", _batch_fact(plan)),
        ("length", f"{plan.steps:,} steps, {short(plan.sequences)} sequences, {short(plan.tokens)} tokens"),
        ("compute", f"{plan.flops_per_token * plan.tokens:.1e} FLOPs"),
        ("time", _time_fact(plan)),
        ("saves", _saving_fact(plan)),
        ("disk", _disk_fact(plan)),
    ]
    for name, fact in rows:
        made.add_row(name, Text(fact))
    return made


def _memory_table(plan: Plan) -> Table:
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(justify="right", no_wrap=True)
    made.add_column(justify="right", style="dim", no_wrap=True)
    made.add_column(no_wrap=True)
    whole = max(plan.memory_needed, plan.memory_available or 0)
    for part, name in PART_NAMES.items():
        if size := plan.memory[part]:
            share = size / plan.memory_needed
            made.add_row(name, human_bytes(size), f"{share:.0%}", Text(_bar(size / whole), style="cyan"))
    colour = {True: "green", False: "red", None: "cyan"}[plan.fits]
    total = Text(_bar(plan.memory_needed / whole), style=colour)
    made.add_row(Text("in all", style="bold"), Text(human_bytes(plan.memory_needed), style="bold"), "", total)
    return made


def _verdict(plan: Plan) -> Text:
    if plan.memory_available is None:
        verdict = Text("whether it fits is not known: cluster.memory_gb is not set")
    elif plan.fits:
        share, available = plan.memory_needed / plan.memory_available, human_bytes(plan.memory_available)
        verdict = Text.assemble(("fits", "bold green"), f": {share:.0%} of the {available} a process has")
    else:
        verdict = Text.assemble(
            ("too large", "bold red"),
            f": a process has {human_bytes(plan.memory_available)}, and needs a tenth free",
        )
    if plan.host_memory_needed:
        verdict.append(f"; host memory beside it: {human_bytes(plan.host_memory_needed)}")
        if plan.host_memory_per_node > plan.host_memory_needed:
            verdict.append(f", {human_bytes(plan.host_memory_per_node)} a node")
    return verdict


def _bar(share: float) -> str:
    """A bar of eighths of a character; anything above 0 shows."""
    eighths = max(1, round(share * _BAR * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + " ▏▎▍▌▋▊▉"[rest].strip()


def _model_fact(plan: Plan) -> str:
    trained = "" if plan.trainable == plan.parameters else f", {plan.trainable:,} of them trained"
    return f"{plan.model}, {plan.parameters:,} parameters{trained}"


def _batch_fact(plan: Plan) -> str:
    split = f"{plan.micro_batch} × {plan.accumulation} accumulated × {plan.world_size} processes"
    return f"{plan.global_batch} sequences of {plan.sequence_length} tokens = {split}"


def _time_fact(plan: Plan) -> str:
    if plan.seconds is None or plan.tokens_per_second is None:
        return "not known before the first steps"
    return f"{duration(plan.seconds)} left at {short(plan.tokens_per_second)} tokens/s"


def _saving_fact(plan: Plan) -> str:
    if plan.save_interval is None or plan.lost_share is None:
        return plan.saves
    apart = duration(plan.save_interval)
    return f"{plan.saves}, about {apart} apart: {plan.lost_share:.1%} of the time lost to saves and failures"


def _disk_fact(plan: Plan) -> str:
    size, free = human_bytes(plan.checkpoint_bytes), human_bytes(plan.disk_free)
    return f"{size} a checkpoint × ({plan.checkpoints_kept} kept + 1 in writing); {free} free"


def _all_warnings(plan: Plan) -> list[str]:
    found = [plan.problem] if plan.problem else []
    if plan.disk_needed > plan.disk_free:
        found.append(f"the disk lacks {human_bytes(plan.disk_needed - plan.disk_free)} for the checkpoints")
    return found + plan.warnings
