"""One node looks at itself: ``python -P -m launch.nodes.probe RUN|- OUT_FOLDER``, once per node.

Answers in ``OUT_FOLDER/<node>.json``: first with what needs no torch, then with all of it. What it cannot
write there, and where it hangs, it prints.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from base.files import read_json, write_json
from launch.job import driver_version
from launch.nodes import machine
from launch.nodes.facts import NodeFacts
from launch.nodes.gpus import gpus
from launch.nodes.matmul import rates
from launch.slurm.snapshot import snapshot_name
from record.heartbeats import node_name

ASK = "ask.json"
"""What the asking side leaves in the folder."""

PATIENCE = 5.0
"""Seconds in which a file of another node must appear."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked.

    Attributes:
        token: to be read here and told back.
        seconds: after which the probe ends itself.
        cpu: look at no device.
        compute: multiply matrices; takes an import of torch.
        internet: whether the hub should answer.
    """

    token: str = ""
    seconds: float = 60.0
    cpu: bool = False
    compute: bool = True
    internet: bool = False


def main(run: str, out: Path) -> int:
    """Look, and answer; returns the exit code."""
    began = time.time()
    ask = read_ask(out)
    watchdog = Watchdog(ask.seconds)
    try:
        facts = _look(run, ask, began)
        _answer(out, facts)
        if facts.stage != "done":
            watchdog.stage = facts.stage
            _answer(out, _compute(facts, ask))
    except OSError as error:
        say(f"{error.filename or out}: {error.strerror}")
        return 1
    return 0


def read_ask(out: Path) -> Ask:
    """What is asked; without anybody to ask, everything.

    A shared folder shows a new file late, but it shows it.
    """
    until = time.monotonic() + (PATIENCE if out.is_dir() else 0)
    while True:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Ask(**read_json(out / ASK))
        if time.monotonic() > until:
            return Ask()
        time.sleep(0.1)


def _look(run: str, ask: Ask, began: float) -> NodeFacts:
    memory = psutil.virtual_memory()
    devices, lost = ([], []) if ask.cpu else gpus()
    places = {"tmp": Path("/tmp")} | ({} if run == "-" else {"run": Path(run)})
    return NodeFacts(
        node=node_name(),
        token=ask.token,
        began=began,
        wrote=time.time(),
        stage="import of torch and matmul" if ask.compute else "done",
        memory=memory.total,
        memory_free=memory.available,
        shm_free=machine.shm_free(),
        disk=machine.disks(places),
        kernel=machine.kernel(),
        driver=None if ask.cpu else driver_version(),
        torch=machine.torch_version(),
        code=snapshot_name(),
        port=machine.gives_ports(),
        gpus=devices,
        lost=lost,
    )


def _compute(facts: NodeFacts, ask: Ask) -> NodeFacts:
    """The rest, which takes seconds."""
    wanted = ask.internet and not os.environ.get("HF_HUB_OFFLINE")
    hub = machine.HubQuestion() if wanted else None
    found: dict[str, Any] = {}
    try:
        found = rates(ask.cpu)._asdict()
    except (ImportError, RuntimeError) as error:
        found = {"errors": [f"matmul: {str(error).splitlines()[0]}"]}
    return replace(facts, stage="done", hub=hub.answer() if hub else None, **found)


def _answer(out: Path, facts: NodeFacts) -> None:
    # The asking side compares it with its own time as soon as it sees it.
    write_json(out / f"{facts.node}.json", asdict(replace(facts, wrote=time.time())))


class Watchdog:
    """Ends this process after so many seconds, saying what it was at: a driver may never return."""

    def __init__(self, seconds: float, stage: str = "questions to the driver and the disks") -> None:
        self.seconds, self.stage = seconds, stage
        timer = threading.Timer(seconds, self._bite)
        timer.daemon = True
        timer.start()

    def _bite(self) -> None:
        say(f"no end of {self.stage} in {self.seconds:.0f} s")
        os._exit(3)


def say(text: str) -> None:
    """A line that reaches the asking side without any shared folder."""
    print(f"preflight: {node_name()}: {text}", flush=True)


if __name__ == "__main__":
    code = main(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    # Not sys.exit: a question to the hub may still be open.
    os._exit(code)
