"""The same on a real Slurm: what is broken on a node is named, and the others go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.processes import HOME
from record.folder import RunFolder
from support.runs import freeze, tiny
from support.slurm import SlurmCluster

pytestmark = pytest.mark.slow

BREAK = """
import os, resource, signal, sys, time
fault = os.environ.get("FAULT_" + os.environ.get("SLURMD_NODENAME", ""))
if fault and "launch.nodes." in " ".join(sys.orig_argv):
    if fault == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if fault == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
"""
"""sitecustomize.py: what Python does first, on a node with a fault."""

LOOK = """
import json, sys, time
from pathlib import Path
from configs.compose import load
from launch.nodes.run import check_nodes
from launch.supervise.slurm_place import SlurmPlace
from record.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
(folder.path / "begun").touch()
while not (folder.path / "go").exists():
    time.sleep(0.05)
config = load(folder.run_yaml)
place = SlurmPlace(folder, config.cluster)
nodes = ["node1", "node2", "node3", "node4"]
print(json.dumps(check_nodes(place, config, folder, nodes, folder.logs / "launch.log")))
"""
"""What the supervisor of a run does before a start, in its job's batch script."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run on two nodes with two spares."""
    (tmp_path / "look.py").write_text(LOOK)
    (tmp_path / "sitecustomize.py").write_text(BREAK)
    cluster = ("cluster=slurm", "cluster.device=cpu", "cluster.nodes=2", "cluster.spare_nodes=2")
    return freeze(tiny(tmp_path, *cluster, "cluster.internet=false"))


def submit(cluster: SlurmCluster, folder: RunFolder, **faults: str) -> str:
    """A job on four nodes that looks at them as soon as there is a file ``go``."""
    home = folder.path.parents[1]
    exports = [f"export FAULT_{node}={fault}" for node, fault in faults.items()]
    exports += [f"export PYTHONPATH={home}:{HOME}", "export OMP_NUM_THREADS=1"]
    script = "\n".join([*exports, f"exec {sys.executable} -P {home}/look.py {folder.path}\n"])
    job = cluster.submit(script, "-N4", "--ntasks-per-node=2", "--no-kill", f"--output={folder.path}/said")
    while not (folder.path / "begun").exists():
        time.sleep(0.05)
    return job


def look(cluster: SlurmCluster, folder: RunFolder, job: str) -> tuple[list[str], dict[str, str], float]:
    (folder.path / "go").touch()
    cluster.wait(job, "COMPLETED")
    passing, failing, seconds = json.loads((folder.path / "said").read_text().splitlines()[-1])
    return passing, failing, seconds


def test_four_good_nodes_pass(cluster: SlurmCluster, folder: RunFolder) -> None:
    passing, failing, seconds = look(cluster, folder, submit(cluster, folder))
    assert (passing, failing) == (["node1", "node2", "node3", "node4"], {})
    assert seconds < 60
    known = [json.loads(file.read_text()) for file in sorted((folder.path.parent / ".nodes").iterdir())]
    assert len(known) == 4
    assert all(line["size"] == 4 and line["bandwidth"] > 0 and line["rates"][0] > 0 for line in known)


def test_nodes_that_are_lost_hang_or_cannot_write_are_named(cluster: SlurmCluster, folder: RunFolder) -> None:
    job = submit(cluster, folder, node2="full", node3="hangs")
    cluster.lose("node4", "--unnoticed")
    passing, failing, seconds = look(cluster, folder, job)
    assert passing == ["node1"]
    assert failing["node2"].endswith("File too large")
    assert failing.keys() == {"node2", "node3", "node4"}
    assert "failed on node node4" in failing["node4"]
    assert seconds < 60
    log = (folder.logs / "launch.log").read_text()
    assert f"umbel: preflight: node2 fails: {failing['node2']}" in log


def test_the_command_gets_itself_nodes_and_writes_lists(
    cluster: SlurmCluster, folder: RunFolder, tmp_path: Path
) -> None:
    setup = f"cluster.setup=['export PYTHONPATH={tmp_path} FAULT_node1=full']"
    profile = ("cluster=slurm", "cluster.device=cpu", "cluster.devices_per_node=2", "cluster.internet=false")
    ran = umbel(tmp_path, *profile, setup, "--nodes", "2", "--out", "lists", "--json")
    assert ran.returncode == 1, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    assert (told["passing"], list(told["failing"])) == (["node2"], ["node1"])
    assert told["facts"]["node2"]["rates"][0] > 0
    assert (tmp_path / "lists" / "passing_nodes.txt").read_text() == "node2\n"
    assert (tmp_path / "lists" / "failing_nodes.txt").read_text() == "node1\n"
    assert cluster.command("squeue", "-h") == ""
    refused = umbel(tmp_path, "cluster=slurm", "cluster.device=cpu", "--nodes", "9")
    assert refused.returncode == 2
    assert refused.stderr.startswith("umbel: error: cluster.nodes: 9 nodes are asked for")


def umbel(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "umbel", "preflight", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(HOME)}
    )
