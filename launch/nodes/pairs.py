"""Groups of nodes sum numbers together: how fast, and whether rightly.

``python -P -m launch.nodes.pairs FOLDER``, once per node, answers in ``FOLDER/<node>.json``. The groups stand
in ``FOLDER/plan.json``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from base.files import read_json, write_json
from launch.nodes.bisect import Group
from launch.nodes.probe import PATIENCE, Watchdog, say
from record.heartbeats import node_name

PLAN = "plan.json"
SECONDS = 0.3
"""Of all-reduces, once connected."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One round.

    Attributes:
        groups: of nodes, none in two of them.
        addresses: where a group's first node is reached.
        numbers: how many float32 are summed at a time.
        seconds: after which a node gives the others up.
    """

    groups: list[Group]
    addresses: dict[str, str]
    cpu: bool
    numbers: int
    seconds: float


def main(folder: Path) -> int:
    """Take part in one round; returns the exit code."""
    node = node_name()
    plan = Plan(**read_json(folder / PLAN))
    answer: dict[str, Any]
    try:
        import torch  # noqa: F401  # takes as long as the disk takes, which is not what is watched

        Watchdog(plan.seconds + PATIENCE, "all-reduce")
        answer = {"rate": _meet(plan, node, folder)}
    except Exception as error:  # whatever the network and its libraries come up with
        answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    try:
        write_json(folder / f"{node}.json", answer)
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        return 1
    return 0


def _meet(plan: Plan, node: str, folder: Path) -> float:
    """GB/s of bus bandwidth: 2 (n-1)/n of the bytes summed, per second, as nccl-tests count it.

    Raises:
        ValueError: the sum is wrong.
    """
    number, group = next((number, group) for number, group in enumerate(plan.groups) if node in group)
    import torch
    import torch.distributed as dist

    cpu, rank, limit = (
        plan.cpu or not torch.cuda.is_available(),
        group.index(node),
        timedelta(0, plan.seconds),
    )
    store = _store(plan, group, rank, folder / f"group-{number}.json")
    dist.init_process_group(
        "gloo" if cpu else "nccl", store=store, rank=rank, world_size=len(group), timeout=limit
    )
    device = torch.device("cpu") if cpu else torch.device("cuda", 0)
    numbers = torch.ones(plan.numbers, device=device)

    def sums(times: int) -> float:
        """Seconds of one."""
        began = time.perf_counter()
        for _ in range(times):
            numbers.fill_(rank + 1.0)
            dist.all_reduce(numbers)
        wrong = int((numbers != len(group) * (len(group) + 1) / 2).sum())  # waits for the device
        if wrong:
            raise ValueError(f"{wrong} of {plan.numbers} sums over the network are wrong")
        return (time.perf_counter() - began) / times

    sums(1)
    # As many for all, or those who do more wait for ever.
    times = torch.tensor([max(1.0, min(50.0, SECONDS / sums(1)))], device=device)
    dist.all_reduce(times, op=dist.ReduceOp.MIN)
    seconds = sums(int(times))
    _leave_together(store, rank, len(group))
    return 2 * (len(group) - 1) / len(group) * 4 * plan.numbers / seconds / 1e9


def _leave_together(store: Any, rank: int, size: int) -> None:
    """Who leaves while another one still reads from it breaks what went well."""
    with contextlib.suppress(Exception):
        store.set(f"done-{rank}", "")
        store.wait([f"done-{each}" for each in range(size)], timedelta(seconds=PATIENCE))


def _store(plan: Plan, group: Group, rank: int, meeting: Path) -> Any:
    """The group's first node opens a port that is free, and tells it in the shared folder."""
    from torch import distributed

    dist: Any = distributed  # whose stubs know no store
    limit = timedelta(seconds=plan.seconds)
    if rank == 0:
        store = dist.TCPStore("localhost", 0, len(group), True, limit, wait_for_workers=False)
        write_json(meeting, store.port)
        return store
    until = time.monotonic() + plan.seconds
    while not meeting.exists() and time.monotonic() < until:
        time.sleep(0.05)
    if not meeting.exists():
        raise TimeoutError(f"{group[0]} does not come")
    return dist.TCPStore(plan.addresses[group[0]], read_json(meeting), len(group), False, limit)


def write_plan(folder: Path, plan: Plan) -> None:
    """Leave it for the nodes."""
    write_json(folder / PLAN, asdict(plan))


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    # Not sys.exit: process groups may wait for nodes that are gone.
    os._exit(code)
