"""What Slurm knows of the site, as plain facts: partitions, nodes, accounts.

Never from JSON: its form changes with Slurm's versions. Works without accounting.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator
from dataclasses import dataclass

from configs.slurm_time import slurm_seconds
from launch.slurm.ask import accounting, ask, rows

_FIELD = re.compile(r"(?:^|\s)([A-Za-z][\w/:]*)=(.*?)(?=\s[A-Za-z][\w/:]*=|\s*$)")
_GRES = re.compile(r"(?P<name>[\w.-]+)(?::(?P<type>[A-Za-z][\w.-]*))?:(?P<count>\d+)(?![\w.])")
_BROKEN = re.compile(r"DOWN|DRAIN|FAIL|INVAL|NOT_RESPONDING|MAINT|UNKNOWN|FUTURE")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A queue. Times in seconds; None where the site sets none. ``qos`` names one with limits of its own."""

    name: str
    is_default: bool
    state: str
    limit: float | None
    default_time: float | None
    nodes: int
    max_nodes: int | None
    qos: str | None


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine. ``memory`` in MiB; ``gres`` and ``gres_used`` count by name with type (``gpu:a100``)."""

    name: str
    address: str
    state: str
    partitions: tuple[str, ...]
    cpus: int
    memory: int
    gres: dict[str, int]
    gres_used: dict[str, int]
    features: tuple[str, ...]
    reason: str | None

    @property
    def works(self) -> bool:
        """Whether jobs can run on it, now or once others have ended."""
        return not _BROKEN.search(self.state)

    def devices(self, gres: str) -> int:
        """How many of a generic resource it has: ``gpu`` counts every type, ``gpu:a100`` that one."""
        return _count(self.gres, gres)

    def devices_used(self, gres: str) -> int:
        """How many of them jobs have."""
        return _count(self.gres_used, gres)


@dataclass(frozen=True, kw_only=True)
class Association:
    """What a user may charge: an account, perhaps in one partition, and its QOS."""

    account: str
    partition: str | None
    qos: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Qos:
    """A quality of service; ``limit`` in seconds of wall time, None where it sets none."""

    name: str
    limit: float | None


def partitions() -> list[Partition]:
    """Every partition that the user may see, as Slurm lists them."""
    return [_partition(facts) for facts in _records(ask("scontrol", "show", "partition", "--oneliner"))]


def nodes(partition: str | None = None) -> list[Node]:
    """Every node, or those of a partition."""
    found = [_node(facts) for facts in _records(ask("scontrol", "show", "node", "--details", "--oneliner"))]
    return [node for node in found if partition is None or partition in node.partitions]


def hostnames(nodes: str) -> list[str]:
    """``node[1-3]`` as single names."""
    return ask("scontrol", "show", "hostnames", nodes).split() if nodes else []


def associations() -> list[Association]:
    """What this user may charge; empty without accounting."""
    listed = accounting(
        "sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}",
        "format=Account,Partition,QOS",
    )  # fmt: skip
    return [
        Association(account=account, partition=partition or None, qos=tuple(filter(None, qos.split(","))))
        for account, partition, qos in rows(listed, 3)
    ]


def qualities() -> list[Qos]:
    """Every quality of service; empty without accounting."""
    listed = accounting("sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=Name,MaxWall")
    return [Qos(name=name, limit=slurm_seconds(limit)) for name, limit in rows(listed, 2)]


def gres_counts(text: str) -> dict[str, int]:
    """``gpu:a100:8(S:0-1),nvme:1`` as ``{"gpu:a100": 8, "nvme": 1}``."""
    found: dict[str, int] = {}
    for match in _GRES.finditer(re.sub(r"\([^)]*\)", "", text)):
        name = ":".join(filter(None, (match["name"], match["type"])))
        found[name] = found.get(name, 0) + int(match["count"])
    return found


def _count(gres: dict[str, int], wanted: str) -> int:
    return sum(count for name, count in gres.items() if name == wanted or name.startswith(f"{wanted}:"))


def _records(text: str) -> Iterator[dict[str, str]]:
    """The ``Key=value`` lines of scontrol; values may hold blanks."""
    for line in text.splitlines():
        if "=" in line:
            yield {key: value.strip() for key, value in _FIELD.findall(line)}


def _partition(facts: dict[str, str]) -> Partition:
    most, qos = facts.get("MaxNodes", ""), facts.get("QoS", "")
    return Partition(
        name=facts["PartitionName"],
        is_default=facts.get("Default") == "YES",
        state=facts.get("State", "UP"),
        limit=_finite(facts.get("MaxTime", "")),
        default_time=_finite(facts.get("DefaultTime", "")),
        nodes=int(facts.get("TotalNodes", "0")),
        max_nodes=int(most) if most.isdigit() else None,
        qos=qos if qos not in ("", "N/A") else None,
    )


def _node(facts: dict[str, str]) -> Node:
    features = facts.get("ActiveFeatures", "").split(",")
    return Node(
        name=facts["NodeName"],
        address=facts.get("NodeAddr", facts["NodeName"]),
        state=facts.get("State", "UNKNOWN"),
        partitions=tuple(filter(None, facts.get("Partitions", "").split(","))),
        # A site may keep some cores and memory for the system.
        cpus=int(facts.get("CPUEfctv") or facts.get("CPUTot", "0")),
        memory=int(facts.get("RealMemory", "0")) - int(facts.get("MemSpecLimit", "0")),
        gres=gres_counts(facts.get("Gres", "")),
        gres_used=gres_counts(facts.get("GresUsed", "")),
        features=tuple(name for name in features if name not in ("", "(null)")),
        reason=facts.get("Reason") or None,
    )


def _finite(text: str) -> float | None:
    seconds = slurm_seconds(text)
    return seconds if seconds not in (None, float("inf")) else None
