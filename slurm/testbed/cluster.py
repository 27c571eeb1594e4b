"""The test cluster as a whole: start, stop, and what breaks and mends it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.configuration import Settings, free_ports
from testbed.daemons import (
    Fault,
    check_installed,
    daemons,
    environment,
    last_words,
    launch,
    prepare,
    register,
)
from testbed.processes import DAEMONS, STEP, TASK, Process, end, processes

READY_SECONDS = 30.0
LONGEST_FOLDER = 60
"""A Unix socket's path has 107 bytes, and Slurm's sockets have long names."""


class Cluster:
    """The test cluster whose files lie in ``folder``, running or not. It is known by its files and processes
    alone, so any number of these objects, in any process, speak of the same cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    # Start and stop -------------------------------------------------------------------------------------

    def start(self, nodes: int, *, accounting: bool, port: int | None = None) -> Settings:
        """Start every daemon that does not run, and return when all nodes are idle.

        Raises:
            Fault: something is missing or busy, or a daemon does not come up.
        """
        self._check_place()
        check_installed(accounting)
        with self._alone():
            running = Settings.read(self.folder) if self.processes(*DAEMONS) else None
            settings = running or self._new(nodes, accounting, port)
            if (settings.nodes, settings.accounting) != (nodes, accounting):
                what = f"{settings.nodes} nodes, accounting {'on' if settings.accounting else 'off'}"
                raise Fault(f"a test cluster runs in {self.folder} with {what}; stop it first")
            self._start_missing(settings)
            self.wait_ready(settings)
        return settings

    def stop(self) -> bool:
        """End every daemon, step and task; whether there was anything to end. The logs stay.

        Raises:
            Fault: something does not end.
        """
        if not self.folder.is_dir():
            return False
        with self._alone():
            return self._end_all()

    def settings(self) -> Settings:
        """
        Raises:
            Fault: nothing runs here.
        """
        settings = Settings.read(self.folder)
        if settings is None or not self.processes(*DAEMONS):
            raise Fault(f"no test cluster runs in {self.folder}; slurm/testcluster start")
        return settings

    def processes(self, *kinds: str, node: str | None = None) -> list[Process]:
        """Its living processes of these kinds (all), on this node (all)."""
        return [
            process
            for process in processes(self.folder)
            if (not kinds or process.kind in kinds) and (node is None or process.node == node)
        ]

    def missing(self, settings: Settings) -> list[str]:
        """The daemons that ought to run and do not."""
        living = {(process.kind, process.node) for process in self.processes(*DAEMONS)}
        return [daemon.name for daemon in daemons(settings) if (daemon.kind, daemon.node) not in living]

    # Break and mend -------------------------------------------------------------------------------------

    def lose(self, node: str, *, unnoticed: bool = False, daemon_only: bool = False) -> None:
        """Take a node's power away: its slurmd and everything on it is gone at once.

        Args:
            unnoticed: leave it to the controller to find out (SlurmdTimeout).
            daemon_only: kill slurmd alone; what runs on the node runs on.
        """
        settings = self._with_node(node)
        kinds = ("slurmd",) if daemon_only else ("slurmd", STEP, TASK)
        end(lambda: self.processes(*kinds, node=node), patience=0)
        if not unnoticed:
            self._put_down(settings, node)

    def heal(self, node: str) -> None:
        """Bring a lost node back."""
        settings = self._with_node(node)
        with self._alone():
            self._start_missing(settings, only=node)
            self.resume(node)
            self.wait_ready(settings, node)

    def resume(self, *names: str) -> None:
        """Make nodes that are down or drained available again; without names, all such nodes."""
        settings = self.settings()
        for node in names or settings.names:
            if self.state(settings, node).rstrip("*") not in USABLE:
                # Refused for a node that has just come back by itself: then there is nothing to do.
                self.slurm(settings, "scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def release(self, job: str) -> None:
        """Let a requeued job start; by itself it waits for as long as a credential lives.

        Not in the same second in which it was requeued: its nodes would refuse it ("Job credential revoked"),
        and it would have failed for good.
        """
        self.slurm(self.settings(), "scontrol", "update", f"jobid={job}", "StartTime=now+2")

    def _put_down(self, settings: Settings, node: str) -> None:
        """Again, where an answer that was under way when its slurmd died brings the node back."""
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            if not self.state(settings, node).startswith("down"):
                self.slurm(settings, "scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
            time.sleep(0.1)

    # What Slurm says ------------------------------------------------------------------------------------

    def slurm(self, settings: Settings, *command: str, check: bool = True) -> str:
        """What a command of Slurm's prints.

        Raises:
            Fault: it failed; in its own words.
        """
        ran = subprocess.run(command, env=environment(settings), capture_output=True, text=True, check=False)
        if check and ran.returncode:
            raise Fault((ran.stderr or ran.stdout).strip().splitlines()[-1])
        return ran.stdout.strip()

    def state(self, settings: Settings, node: str) -> str:
        """``idle``, ``mixed``, ``allocated``, ``down``…; a star says that the node does not answer."""
        return self.slurm(settings, "sinfo", "-h", "-N", "-n", node, "-o", "%T", check=False).split("\n")[0]

    def wait_ready(self, settings: Settings, *names: str) -> None:
        """
        Raises:
            Fault: a node's daemon ended, or it is not usable after ``READY_SECONDS``.
        """
        deadline = time.monotonic() + READY_SECONDS
        for node in names or settings.names:
            while (state := self.state(settings, node)) not in USABLE:
                if time.monotonic() > deadline or not self.processes("slurmd", node=node):
                    log = self.folder / "log" / f"slurmd-{node}.log"
                    raise Fault(f"{node} is {state or 'unknown'}, not idle: {last_words(log)}; {log}")
                time.sleep(0.1)

    # Inside ---------------------------------------------------------------------------------------------

    def _check_place(self) -> None:
        if sys.platform != "linux":
            raise Fault("Slurm needs Linux; start the test cluster in a virtual machine or a container")
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise Fault(f"{self.folder} is too long a path for sockets; --folder with a shorter one")
        if self.folder.exists() and any(self.folder.iterdir()) and not self._is_ours():
            raise Fault(f"{self.folder} holds something else; --folder with an empty one")

    def _is_ours(self) -> bool:
        return (self.folder / ".testcluster").exists() and self.folder.stat().st_uid == os.getuid()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time starts or ends daemons."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        with (self.folder / ".testcluster").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _new(self, nodes: int, accounting: bool, port: int | None) -> Settings:
        """Files of a new cluster in place of an old one's."""
        self._end_all()
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != ".testcluster":
                entry.unlink()
        try:
            first = free_ports(nodes + 2, port)
        except OSError as error:
            raise Fault(f"{error}; --port with the first of {nodes + 2} free ones in a row") from None
        settings = Settings(self.folder, nodes, accounting, first)
        prepare(settings)
        return settings

    def _start_missing(self, settings: Settings, only: str | None = None) -> None:
        missing = self.missing(settings)
        for daemon in daemons(settings):
            if daemon.name in missing and only in (None, daemon.node):
                if daemon.kind == "slurmctld" and settings.accounting:
                    register(settings)
                launch(daemon, settings, seconds=READY_SECONDS)

    def _end_all(self) -> bool:
        there = bool(self.processes())
        # Daemons first: a controller that lives would start other work on what is left.
        left = end(lambda: self.processes(*DAEMONS), patience=5)
        left += end(self.processes, patience=0)
        if left:
            raise Fault("does not end: " + ", ".join(f"{process.kind} {process.pid}" for process in left))
        return there

    def _with_node(self, node: str) -> Settings:
        settings = self.settings()
        if node not in settings.names:
            raise Fault(f"there is no {node}; known: {', '.join(settings.names)}")
        return settings


USABLE = ("idle", "mixed", "allocated", "completing")
