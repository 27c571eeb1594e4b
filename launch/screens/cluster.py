"""A Slurm site on a terminal: its partitions, their nodes with what is free, and what one may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launch.screens.console import table
from launch.screens.numbers import duration

if TYPE_CHECKING:
    from launch.slurm.discover import Discovery, Room


def cluster_screen(found: Discovery) -> RenderableType:
    """What `umbel doctor --cluster` shows above the profile."""
    parts: list[RenderableType] = [_partitions(found)]
    accounts = sorted({each.account for each in found.accounts})
    if accounts:
        parts.append(Text(f"accounts: {', '.join(accounts)}"))
    limits = [
        f"{each.name} ({duration(each.limit)})" if each.limit else each.name for each in found.qualities
    ]
    if limits:
        parts.append(Text(f"QOS: {', '.join(limits)}"))
    return Group(*parts, Text())


def _partitions(found: Discovery) -> Table:
    made = table("partition", "limit", "nodes", "devices", "per node", right=("limit",))
    for room in found.rooms:
        partition = room.partition
        made.add_row(
            partition.name + (" (default)" if partition.is_default else ""),
            duration(partition.limit) if partition.limit else "none",
            f"{room.working} of {room.nodes} work",
            f"{room.free} of {room.total} {room.device} free" if room.device else "none",
            _per_node(room),
        )
    return made


def _per_node(room: Room) -> str:
    memory = f"{room.memory / 1024:.0f} GiB" if room.memory > 1024 else f"{room.memory} MiB"
    devices = f"{room.per_node} devices, " if room.device else ""
    return f"{devices}{room.cpus} cores, {memory}"
