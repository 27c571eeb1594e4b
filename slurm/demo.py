"""``make slurm-demo``: a two-node DeepSpeed run on a real Slurm, preempted by a job that matters more,
requeued and finished."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.cluster import Cluster
from testbed.configuration import Settings
from testbed.daemons import Fault, environment

from record.events import read_events
from record.folder import RunFolder
from record.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
UMBEL = Path(sys.executable).with_name("umbel")
NAME = "slurm-demo"
LAUNCH = (
    *("launch", "--yes", "--config-dir", "slurm/configs", "cluster=testcluster", "experiment=demo"),
    *("parallelism=zero1", "parallelism.micro_batch=4", "schedule.steps=100", "schedule.warmup_steps=10"),
    *("checkpoint.every=25", "cluster.slurm.grace_seconds=20"),
)
URGENT = ("sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
STORY = {
    "submitted": "job {job} waits in the queue",
    "job": "job {id} runs on {nodes}",
    "start": "training from step {step} on {world_size} processes, ZeRO stage {zero_stage}",
    "checkpoint": "saved step {step}",
    "stopped": "all processes stopped after step {step}: {reason}",
    "requeue": "back into the queue: {why}",
    "failed": "failed: {error}",
    "gave up": "gave up: {why}",
    "finished": "finished at step {step}",
}
"""How each event is told; the others are not."""
MINUTES = 10.0


class Demo:
    """The run, and what is done to it. What the screen says of the run, its events say."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.cluster, self.settings = cluster, settings
        self.run = RunFolder(cluster.folder / "runs" / NAME)
        self.told = 0
        self.deadline = time.monotonic() + MINUTES * 60

    def play(self) -> None:
        """
        Raises:
            Fault: a command failed, or the run did not come to its end.
        """
        self.type(str(UMBEL), *LAUNCH, f"run.name={NAME}", f"run.dir={self.run.path.parent}")
        self.wait("its first steps", lambda: self.steps() >= 20)
        say(f"It is at step {self.steps()}. Now comes a job that matters more, and wants all the nodes:")
        self.type(*URGENT)
        job = self.events("job")[-1]["id"]
        self.wait("its way back into the queue", lambda: self.is_queued(job))
        say("Slurm lets a requeued job wait a while; its owner may cut that short:")
        self.type("scontrol", "update", f"jobid={job}", "StartTime=now+2")
        self.wait("its end", lambda: bool(self.events("finished")))
        self.type(str(UMBEL), "status", str(self.run.path))

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.run) if not names or event["event"] in names]

    def steps(self) -> int:
        return max((line["step"] for line in read_metrics(self.run)), default=0)

    def is_queued(self, job: str) -> bool:
        return self.cluster.slurm(self.settings, "squeue", "-h", "-j", job, "-o", "%T") == "PENDING"

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Tell what happens until the condition holds."""
        while not condition():
            self.tell()
            if self.events("gave up") or time.monotonic() > self.deadline:
                raise Fault(f"the run did not reach {what}; see {self.run.path}/logs")
            time.sleep(0.5)
        self.tell()

    def tell(self) -> None:
        events = self.events()
        for event in events[self.told :]:
            if story := STORY.get(event["event"]):
                print(f"  {time.strftime('%H:%M:%S')}  {story.format(**_plain(event))}", flush=True)
        self.told = len(events)

    def type(self, *command: str) -> None:
        """Run a command as anybody would type it."""
        say("$ " + shlex.join([Path(command[0]).name, *command[1:]]))
        ran = subprocess.run(command, env=environment(self.settings), cwd=ROOT, check=False)
        if ran.returncode:
            raise Fault(f"{Path(command[0]).name} ended with exit code {ran.returncode}")


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    return {key: ", ".join(value) if isinstance(value, list) else value for key, value in event.items()}


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    keep = parser.parse_args().keep
    cluster = Cluster(Path(tempfile.gettempdir()) / "umbel-slurm-demo")
    try:
        cluster.stop()  # what a demo that was killed may have left
        settings = cluster.start(4, accounting=False)
        say(f"A Slurm of {settings.nodes} nodes runs on this machine, in {cluster.folder}.")
        Demo(cluster, settings).play()
    except Fault as fault:
        print(f"slurm-demo: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if not keep:
            cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
