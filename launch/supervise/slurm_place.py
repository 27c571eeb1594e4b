"""The nodes of a Slurm job: the workers are a step of it, started by srun from the batch script's node."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from base.errors import UmbelError
from configs.schema import Cluster
from launch import processes
from launch.slurm.ask import ask
from launch.slurm.grace import grace_seconds
from launch.slurm.jobs import active_jobs
from launch.slurm.queries import hostnames
from launch.supervise.asking import ask_again, ask_patiently
from launch.supervise.place import Process
from record.folder import RunFolder

_FIELD = re.compile(r"(\S+?)=(\S*)")
_GONE = re.compile(r"DOWN|FAIL|NOT_RESPONDING|INVAL|UNKNOWN|POWER|\*")
"""In the state of a node that cannot be worked on; one that is draining still can."""

_FIRST_PORT, _PORTS = 20000, 12000
"""Below those that systems hand out by themselves."""

STEP = "umbel"
"""Name of the workers' step; the watchers' has another."""


class SlurmPlace:
    """`Place` inside a Slurm job.

    Args:
        keep: descriptors that srun holds open, too: the run's launch lock.
    """

    def __init__(self, folder: RunFolder, cluster: Cluster, keep: tuple[int, ...] = ()) -> None:
        self.folder, self.cluster, self.keep = folder, cluster, keep
        self.job = os.environ["SLURM_JOB_ID"]
        # One job of an array has the number of the whole array: what is asked by it, is told of all.
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        self._id = f"{array}_{task}" if array and task else self.job
        self.grace = float(grace_seconds(cluster.slurm, folder))
        self._starts = 0
        self._deadline: float | None = None
        processes.adopt_orphans()

    # Nodes --------------------------------------------------------------------------------------------

    def nodes(self) -> list[str]:
        """Those of the job that answer; all of them where Slurm does not. A job that outlives a node loses it
        for good, and its environment does not know."""
        names = hostnames(self._job_facts().get("NodeList") or os.environ["SLURM_JOB_NODELIST"])
        here = os.environ.get("SLURMD_NODENAME")
        names.sort(key=lambda name: name != here)
        with contextlib.suppress(UmbelError):
            states = {name: facts.get("State", "") for name, facts in self._node_facts(names).items()}
            return [name for name in names if not _GONE.search(states.get(name, "DOWN"))]
        return names

    def lost(self, nodes: Sequence[str]) -> list[str]:
        """By their states; a job that comes back has let go of all its nodes by then."""
        with contextlib.suppress(UmbelError):
            states = {name: facts.get("State", "") for name, facts in self._node_facts(nodes).items()}
            return [name for name in nodes if _GONE.search(states.get(name, ""))]
        return []

    def _node_facts(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        listed = ask_again("scontrol", "show", "node", "--oneliner", ",".join(names))
        records = [dict(_FIELD.findall(line)) for line in listed.splitlines()]
        return {record["NodeName"]: record for record in records if "NodeName" in record}

    # Workers ------------------------------------------------------------------------------------------

    def start(self, command: Sequence[str], nodes: Sequence[str], log: Path, attempt: int) -> Process:
        """The srun of the batch script, on exactly these nodes."""
        self._starts += 1
        variables = dict(os.environ) | self._meeting(nodes)
        try:
            # Its death would be no signal to save: srun kills the tasks when it is told to end.
            return processes.start(
                self._srun(command, nodes, attempt), variables, log, keep=self.keep, detach=True
            )
        except OSError as error:
            raise UmbelError(f"cannot be started ({error.strerror})", where=command[0]) from error

    def _srun(self, command: Sequence[str], nodes: Sequence[str], attempt: int) -> list[str]:
        per_node = int(os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
        options = [
            f"--job-name={STEP}-{self._starts}",
            f"--nodes={len(nodes)}",
            f"--ntasks={per_node * len(nodes)}",
            f"--ntasks-per-node={per_node}",
            f"--nodelist={','.join(nodes)}",
        ]
        if not any("torch.distributed.run" in part for part in command):
            options += [f"--output={self._task_log(attempt)}", "--open-mode=append"]
        return [command[0], *options, *command[1:]]

    def _task_log(self, attempt: int) -> str:
        """The file in which the worker goes on once it knows its rank, which Slurm fills in here."""
        file = self.folder.rank_log(attempt, 0)
        file.parent.mkdir(parents=True, exist_ok=True)
        return f"{str(file.parent).replace('%', '%%')}/{file.name.replace('00000', '%5t', 1)}"

    def _meeting(self, nodes: Sequence[str]) -> dict[str, str]:
        """Where the ranks meet: by its address, for the name of a node need not resolve; on a port of this
        job's own, and another one for each start."""
        address = nodes[0]
        with contextlib.suppress(UmbelError):
            address = self._node_facts(nodes[:1])[nodes[0]].get("NodeAddr", address)
        number = int(self.job) * 31 + int(os.environ.get("SLURM_RESTART_COUNT") or 0) * 7 + self._starts
        return {"MASTER_ADDR": address, "MASTER_PORT": str(_FIRST_PORT + number % _PORTS)}

    def start_watchers(self, attempt: int, nodes: Sequence[str], log: Path) -> list[Process]:
        """Beside the workers, of whose resources they take nothing. Where Slurm refuses, nobody watches."""
        options = (
            "--overlap",
            "--gres=none",
            "--mem=0",
            "--cpus-per-task=1",
            "--kill-on-bad-exit=0",
            "--wait=0",
        )
        place = (f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1")
        watcher = [
            sys.executable,
            "-u",
            "-P",
            "-m",
            "launch.supervise.node",
            str(self.folder.path),
            str(attempt),
        ]
        command = ["srun", f"--job-name=watch-{self._starts}", *options, *place]
        command += [f"--nodelist={','.join(nodes)}", *watcher]
        try:
            return [processes.start(command, dict(os.environ), log, session=False)]
        except OSError:
            return []

    def end(self, process: Process, kind: int) -> int:
        """Through Slurm: srun passes on some signals, takes others for an order to kill, and may be dead."""
        steps = self._steps()
        if kind:
            for step in steps:
                with contextlib.suppress(UmbelError):
                    ask("scancel", f"--signal={signal.Signals(kind).name.removeprefix('SIG')}", step)
        if kind == signal.SIGKILL and not steps and process.poll() is None:
            process.kill()
        if process.poll() is None:
            return 1 + len(steps)
        # An srun that ended by itself leaves no task that lives; a step with a lost node is listed for long.
        return len(steps) if process.returncode < 0 else 0

    def _steps(self) -> list[str]:
        """Those of this job in which workers live."""
        try:
            listed = ask("squeue", "--steps", "--noheader", f"--jobs={self._id}", "--format=%i %j")
        except UmbelError:
            return []
        return [
            line.split()[0] for line in listed.splitlines() if line.split()[1:2] == [f"{STEP}-{self._starts}"]
        ]

    # Time and queue -----------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """The job's EndTime, as it was before Slurm began to end the job: then it tells when that began."""
        facts = self._job_facts()
        if facts.get("JobState") == "RUNNING" and not _is_preempted(facts):
            end = facts.get("EndTime", "")
            self._deadline = float(end) if end.isdigit() else None
        return self._deadline

    def why_stopped(self) -> str | None:
        """From the job's own record: no signal tells the batch script of a preemption."""
        facts = self._job_facts()
        if _is_preempted(facts):
            return "preempted"
        if facts.get("JobState") != "COMPLETING":
            return None
        if _is_requeued(facts):
            return "requeued"
        return "time limit" if facts.get("Reason") == "TimeLimit" else "cancelled"

    def _job_facts(self) -> dict[str, str]:
        try:
            return dict(_FIELD.findall(ask_again("scontrol", "show", "job", "--oneliner", self._id)))
        except UmbelError:
            return {}

    def requeues(self) -> bool:
        return self.cluster.slurm.chain == "requeue" or bool(self._pending())

    def requeue(self, exclude: Sequence[str]) -> None:
        """This job again, or the next of its chain; told which nodes to leave out.

        The nodes last, for Slurm takes them only of a job that does not run. By then it ends this job with
        SIGTERM, and with it every command that does not ignore that.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.cluster.slurm.chain == "requeue":
            if not _is_requeued(self._job_facts()):
                ask_patiently("scontrol", "requeue", self._id)
            waiting = [self._id]
        else:
            waiting = self._pending()
        nodes = sorted({*self.cluster.slurm.exclude, *exclude})
        for job in waiting if nodes else ():
            ask("scontrol", "update", f"jobid={job}", f"ExcNodeList={','.join(nodes)}")

    def leave(self) -> None:
        for job in self._pending():
            with contextlib.suppress(UmbelError):
                ask("scancel", "--state=PENDING", job)

    def _pending(self) -> list[str]:
        """The jobs of the chain that wait for their turn."""
        try:
            return [job.number for job in active_jobs(self.folder) if job.state == "PENDING"]
        except UmbelError:
            return []


def _is_preempted(facts: dict[str, str]) -> bool:
    return facts.get("PreemptTime", "None") not in ("None", "Unknown") or facts.get("JobState") == "PREEMPTED"


def _is_requeued(facts: dict[str, str]) -> bool:
    """Whether Slurm counts one start more than this job's script knows of."""
    return int(facts.get("Restarts", "0")) > int(os.environ.get("SLURM_RESTART_COUNT") or 0)
