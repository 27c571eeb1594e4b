"""Reading a site: partitions, what is free in them, what this user may ask for; and a first profile of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from base.errors import UmbelError
from launch.slurm import queries
from launch.slurm.ask import require_slurm
from launch.slurm.checks import slurm_time
from launch.slurm.queries import Association, Node, Partition, Qos

DEVICE = "gpu"
"""What nearly every site calls its accelerators among Slurm's generic resources."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A partition with what its working nodes have. ``device`` is the generic resource with its type."""

    partition: Partition
    nodes: int
    working: int
    device: str | None
    per_node: int
    total: int
    free: int
    cpus: int
    memory: int


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What a site has, as this user sees it; accounts and QOS are empty where it keeps none."""

    rooms: list[Room]
    accounts: list[Association]
    qualities: list[Qos]


def discover() -> Discovery:
    """Ask Slurm about everything.

    Raises:
        UmbelError: there is no Slurm here, or it does not answer.
    """
    require_slurm()
    nodes = queries.nodes()
    rooms = [_room(partition, nodes) for partition in queries.partitions()]
    if not rooms:
        raise UmbelError("shows no partition to this user", where="Slurm", fix="ask the site for access")
    return Discovery(rooms=rooms, accounts=queries.associations(), qualities=queries.qualities())


def profile(found: Discovery, name: str) -> str:
    """A first profile as YAML: of the partition with most devices, at a tie the default one."""
    room = max(found.rooms, key=lambda room: (room.total, room.partition.is_default))
    return "\n".join(_profile(found, room, name)) + "\n"


def _profile(found: Discovery, room: Room, name: str) -> Iterator[str]:
    partition, accounts = room.partition, sorted({each.account for each in found.accounts})
    yield "# Read from Slurm by `umbel doctor --cluster`. configs/cluster/template.yaml explains every key."
    yield f"name: {name}"
    yield f"institution: {name} # who you are to your partners"
    yield "launcher: slurm"
    yield "nodes: 1"
    if room.device:
        yield f"devices_per_node: {room.per_node}"
        yield "memory_gb: null # of one device: set it, and umbel plan says what fits"
    else:
        yield "device: cpu # no node here has a GPU"
    yield "slurm:"
    yield f"  partition: {_text(partition.name)}{_among([each.partition.name for each in found.rooms])}"
    if accounts:
        yield f"  account: {_text(accounts[0])}{_among(accounts)}"
    if qos := _qos(found, partition):
        yield f"  # qos: {' '.join(qos)}"
    if limit := partition.limit:
        yield f'  time: "{slurm_time(limit)}" # the most that {partition.name} allows'
    else:
        yield '  # time: "20:00:00" # this partition sets no limit'
    if room.device and room.device != DEVICE:
        yield f"  gres: {room.device}"
    yield "# internet: false # if the compute nodes have none"
    yield '# scratch: "${oc.env:SCRATCH}" # a shared folder for runs'
    yield "# cache: null # a shared folder for data and models"


def _room(partition: Partition, nodes: list[Node]) -> Room:
    mine = [node for node in nodes if partition.name in node.partitions]
    working = [node for node in mine if node.works]
    device = _device(working)
    having = [node for node in working if device and node.devices(device)]
    counts = Counter(node.devices(device) for node in having) if device else Counter()
    typical = having or working
    return Room(
        partition=partition,
        nodes=len(mine),
        working=len(working),
        device=device,
        per_node=counts.most_common(1)[0][0] if counts else 0,
        total=sum(node.devices(device) for node in having) if device else 0,
        free=sum(free_devices(node, device) for node in having) if device else 0,
        cpus=min((node.cpus for node in typical), default=0),
        memory=min((node.memory for node in typical), default=0),
    )


def free_devices(node: Node, device: str) -> int:
    """Devices of a node that no job has; none on a node that takes no jobs."""
    return max(0, node.devices(device) - node.devices_used(device)) if node.works else 0


def _device(nodes: list[Node]) -> str | None:
    """``gpu:a100`` where all devices of the nodes are of one type, else ``gpu``; None without any."""
    kinds = {name for node in nodes for name in node.gres if name.split(":")[0] == DEVICE}
    if not kinds:
        return None
    return kinds.pop() if len(kinds) == 1 else DEVICE


def _qos(found: Discovery, partition: Partition) -> list[str]:
    """The QOS that this user may name, each with its limit: ``long (100:00:00)``."""
    limits = {qos.name: qos.limit for qos in found.qualities}
    mine = [qos for each in found.accounts if each.partition in (None, partition.name) for qos in each.qos]
    return [
        f"{name} ({slurm_time(limit)})" if (limit := limits.get(name)) else name
        for name in dict.fromkeys(mine)
        if name != "normal" or limits.get(name)
    ]


def _among(names: list[str]) -> str:
    return f" # of {', '.join(names)}" if len(names) > 1 else ""


def _text(name: str) -> str:
    """A name as YAML: quoted where it could be read as something else."""
    return (
        name if name.replace("_", "").replace("-", "").isalnum() and not name.isdigit() else json.dumps(name)
    )
