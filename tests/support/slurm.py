"""A real Slurm for tests: four nodes on this machine, started once per session, clean before each test.

Import the fixtures in ``tests/conftest.py``; a test then takes ``cluster``.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTCLUSTER = Path(__file__).resolve().parents[2] / "slurm" / "testcluster"
INSTALL = "apt-get install slurm-wlm munge slurmdbd mariadb-server"
PREFIX = "umbel-slurm-"
LIVING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED")


def run_testcluster(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``slurm/testcluster`` with these words."""
    command = [sys.executable, str(TESTCLUSTER), *words]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=120)


def programs_or_skip() -> None:
    """Skip where Slurm is not installed; CI installs it, so there it is a fault."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    if all(
        shutil.which(name, path=path) for name in ("slurmctld", "slurmd", "munged", "slurmdbd", "mariadbd")
    ):
        return
    if "CI" in os.environ:
        pytest.fail(f"Slurm is not installed; {INSTALL}")
    pytest.skip(f"Slurm is not installed; {INSTALL}")


@dataclass(frozen=True)
class SlurmCluster:
    """The running test cluster; ``SLURM_CONF`` in ``os.environ`` points every Slurm command to it."""

    folder: Path
    nodes: tuple[str, ...] = ("node1", "node2", "node3", "node4")

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    # Ask --------------------------------------------------------------------------------------------------

    def command(self, *words: str, check: bool = True, seconds: float = 60) -> str:
        """What a Slurm command prints; with ``check``, AssertionError with its own words when it fails."""
        ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds)
        assert not check or ran.returncode == 0, f"{' '.join(words)}: {ran.stderr or ran.stdout}"
        return ran.stdout.strip()

    def rows(self, *words: str) -> list[dict[str, str]]:
        """The rows that ``sacct --parsable2 …`` or ``sacctmgr --parsable2 …`` prints, by column name."""
        return list(csv.DictReader(self.command(*words, "--parsable2").splitlines(), delimiter="|"))

    def job(self, job: str) -> dict[str, str]:
        """The fields of ``scontrol show job``: JobState, Reason, NodeList, Restarts…; none once forgotten."""
        text = self.command("scontrol", "show", "job", "-o", job, check=False)
        return dict(re.findall(r"([\w:/]+)=(.*?)(?= [\w:/]+=|$)", text))

    def state(self, job: str) -> str:
        """``PENDING``, ``RUNNING``, ``COMPLETED``…, in Slurm's words."""
        return self.job(job).get("JobState", "UNKNOWN")

    def accounted(self, job: str) -> list[dict[str, str]]:
        """What the accounting says about each start of a job, oldest first."""
        columns = "JobIDRaw,State,ExitCode,NodeList"
        return self.rows("sacct", "-X", "--duplicates", "-j", job, "--format", columns)

    def node_state(self, node: str) -> str:
        return self.command("sinfo", "-h", "-N", "-n", node, "-o", "%T").splitlines()[0]

    # Act --------------------------------------------------------------------------------------------------

    def submit(self, script: str, *options: str) -> str:
        """Submit a batch script's text; returns the job's id."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh", dir=self.folder) as file:
            file.write(script if script.startswith("#!") else f"#!/bin/bash\n{script}")
            file.flush()
            out = [] if "--output" in script else [f"--output={self.folder}/job-%j.out"]
            return self.command("sbatch", "--parsable", *out, *options, file.name).split(";")[0]

    def wait(self, job: str, *states: str, seconds: float = 60) -> str:
        """Wait until a job is in one of these states (any that is an end); AssertionError with what it is."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.state(job)
            if state in states or (not states and state not in LIVING):
                return state
            if time.monotonic() > deadline or (states and state not in LIVING):
                raise AssertionError(f"job {job} is {state}, not {states or 'ended'}: {self.job(job)}")
            time.sleep(0.1)

    def lose(self, node: str, *options: str) -> None:
        """Kill a node and all that runs on it. Options: ``--unnoticed``, ``--daemon-only``."""
        self._testcluster("lose", node, *options)

    def heal(self, node: str) -> None:
        self._testcluster("heal", node)

    def release(self, job: str) -> None:
        """Let a requeued job start two seconds from now; waits until it is pending."""
        self.wait(job, "PENDING")
        self._testcluster("release", job)

    def clean(self, seconds: float = 30) -> None:
        """End every job at once and bring every node back."""
        user = str(os.getuid())
        deadline = time.monotonic() + seconds
        while self.command("squeue", "-h", "-o", "%i"):
            self.command("scancel", "-u", user, "--full", "--signal=KILL", check=False)
            self.command("scancel", "-u", user, check=False)
            assert time.monotonic() < deadline, self.command("squeue")
            self._heal_all()  # what ran on a lost node completes when it is back
            time.sleep(0.2)
        self._heal_all()

    def _heal_all(self) -> None:
        for node in self.nodes:
            if self.node_state(node) not in ("idle", "completing", "mixed", "allocated"):
                self.heal(node)

    def _testcluster(self, verb: str, *words: str) -> None:
        ran = run_testcluster(verb, "--folder", str(self.folder), *words, check=False)
        assert ran.returncode == 0, ran.stderr


# Fixtures -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Slurm for the whole session, with accounting. Tests take ``cluster``."""
    programs_or_skip()
    # A short name, for sockets' sake.
    folder = Path(tempfile.mkdtemp(prefix="umbel-slurm-", dir="/tmp"))
    with _stopped_at_the_end(folder):
        started = run_testcluster("start", "--folder", str(folder), "--accounting", check=False)
        if started.returncode:
            pytest.fail(started.stderr)
        cluster = SlurmCluster(folder)
        os.environ["SLURM_CONF"] = str(cluster.conf)
        yield cluster
        del os.environ["SLURM_CONF"]


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """A running Slurm of four idle nodes, with no jobs."""
    yield slurm_cluster
    slurm_cluster.clean()


@contextmanager
def _stopped_at_the_end(folder: Path) -> Iterator[None]:
    """Stop the cluster when the block ends or this process does, be it by kill -9: a child waits for its
    input to end, and stops it then."""
    script = 'cat; "$0" "$1" stop --folder "$2" && rm -rf "$2"'
    keeper = subprocess.Popen(
        ["sh", "-c", script, sys.executable, str(TESTCLUSTER), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert keeper.stdin is not None
    try:
        yield
    finally:
        keeper.stdin.close()
        assert keeper.wait() == 0, f"the test cluster in {folder} did not stop"
