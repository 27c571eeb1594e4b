"""The test cluster itself: that what stands in for a site's Slurm behaves as one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.slurm import TESTCLUSTER, SlurmCluster, programs_or_skip, run_testcluster

pytestmark = pytest.mark.slow
NOBODY = (65534, 65534)


def until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# Start and stop -------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for a second cluster beside the session's."""
    programs_or_skip()
    folder = Path(tempfile.mkdtemp(prefix="umbel-slurm-", dir="/tmp"))
    yield folder
    run_testcluster("stop", "--folder", str(folder))
    shutil.rmtree(folder)


def daemons(folder: Path) -> dict[str, int]:
    """Name and process id of each daemon that ``status`` tells of."""
    told = run_testcluster("status", "--folder", str(folder), check=False).stdout.splitlines()
    lines = [line.split() for line in told]
    return {" ".join(line[1:]): int(line[0]) for line in lines if line and line[0].isdigit()}


def mentions(folder: Path) -> list[str]:
    """The command line of every process that has something of the folder open or in its arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
            files = [os.readlink(descriptor) for descriptor in (entry / "fd").iterdir()]
        except OSError:
            continue
        if any(str(folder) in each for each in [words, *files]):
            found.append(words)
    return found


def test_it_starts_in_seconds_mends_itself_and_leaves_nothing(place: Path) -> None:
    began = time.monotonic()
    run_testcluster("start", "--folder", str(place), "--nodes", "2")
    assert time.monotonic() - began < 15
    first = daemons(place)
    assert set(first) == {"munged", "slurmctld", "slurmscriptd", "slurmd node1", "slurmd node2"}

    run_testcluster("start", "--folder", str(place), "--nodes", "2")
    assert daemons(place) == first

    os.kill(first["slurmctld"], signal.SIGKILL)
    os.kill(first["slurmd node2"], signal.SIGKILL)
    until(lambda: run_testcluster("status", "--folder", str(place), check=False).returncode == 1)
    run_testcluster("start", "--folder", str(place), "--nodes", "2")
    second = daemons(place)
    assert set(second) == set(first)
    assert second["munged"] == first["munged"] and second["slurmctld"] != first["slurmctld"]

    refused = run_testcluster("start", "--folder", str(place), "--nodes", "3", check=False)
    assert refused.returncode == 2 and "stop it first" in refused.stderr

    environment = os.environ | {"SLURM_CONF": str(place / "slurm.conf")}
    sleep = ["sbatch", "--nodes=2", "--wrap=srun sleep 600", "--output=/dev/null"]
    subprocess.run(sleep, env=environment, check=True, capture_output=True)
    until(lambda: any(name.startswith("task") for name in daemons(place)))
    os.kill(second["slurmd node1"], signal.SIGKILL)
    run_testcluster("stop", "--folder", str(place))
    assert mentions(place) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_normal_user_can_have_one(place: Path) -> None:
    shutil.copytree(TESTCLUSTER.parent, place / "code", ignore=shutil.ignore_patterns("__pycache__"))
    folder = place / "own"
    folder.mkdir()
    for each in [place, *place.rglob("*")]:
        os.chown(each, *NOBODY)

    def run(*words: str) -> str:
        ran = subprocess.run(
            words,
            env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")},
            cwd=place,
            user=NOBODY[0],
            group=NOBODY[1],
            extra_groups=[],
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    program, here = str(place / "code" / "testcluster"), f"--folder={folder}"
    run(program, "start", "--nodes", "1", here)
    told = run("srun", "--gres=gpu:2", "sh", "-c", "id -u; echo $CUDA_VISIBLE_DEVICES")
    assert told.split() == [str(NOBODY[0]), "0,1"]
    run(program, "stop", here)
    assert mentions(folder) == []


def test_what_is_in_the_way_is_told_in_one_line(place: Path, cluster: SlurmCluster) -> None:
    def refused(*words: str, env: dict[str, str] | None = None) -> str:
        command = [sys.executable, str(TESTCLUSTER), *words, "--folder", str(place)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
        return ran.stderr

    assert "testcluster start" in refused("env")
    busy = next(line for line in cluster.conf.read_text().splitlines() if line.startswith("SlurmctldPort"))
    assert "is busy" in refused("start", "--port", busy.split("=")[1])
    (place / "letter.txt").write_text("to somebody")
    shutil.rmtree(place / "log", ignore_errors=True)
    (place / ".testcluster").unlink()
    assert "holds something else" in refused("start")
    assert (place / "letter.txt").read_text() == "to somebody"


def test_a_shell_is_told_which_slurm_it_speaks_to(cluster: SlurmCluster) -> None:
    told = run_testcluster("env", "--folder", str(cluster.folder)).stdout
    line = f"unset SLURM_CONF; {told}\nsinfo -h -o %P"
    ran = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert sorted(ran.stdout.split()) == ["high", "low", "main*", "short"]


# Jobs -----------------------------------------------------------------------------------------------------


def test_four_nodes_run_one_step(cluster: SlurmCluster) -> None:
    told = cluster.command("srun", "-N4", "sh", "-c", "echo $SLURMD_NODENAME")
    assert sorted(told.split()) == list(cluster.nodes)


def test_devices_are_counted_and_numbered(cluster: SlurmCluster) -> None:
    show = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    assert cluster.command("srun", "-N2", "--gres=gpu:2", *show).split() == ["0,1", "0,1"]
    job = cluster.submit("sleep 60", "--gres=gpu:3", "--nodelist=node1", "--output=/dev/null")
    cluster.wait(job, "RUNNING")
    assert cluster.command("srun", "--nodelist=node1", "--gres=gpu:1", *show) == "3"


def test_a_preempted_job_hears_of_it_and_comes_back(cluster: SlurmCluster, tmp_path: Path) -> None:
    told, log = tmp_path / "told", tmp_path / "log"
    script = f"""
    [ "$SLURM_RESTART_COUNT" = 1 ] && exit 0
    srun sh -c 'trap "echo TERM >> {told}; exit 1" TERM; echo ready >> {told}; while :; do sleep 0.1; done'
    scontrol requeue $SLURM_JOB_ID
    sleep 60
    """
    options = ("-N4", "--exclusive", "--requeue", "--open-mode=append", f"--output={log}")
    low = cluster.submit(script, "-p", "low", *options)
    until(lambda: told.exists() and told.read_text().split() == ["ready"] * 4)
    high = cluster.submit("exit 0", "-p", "high", "-N4", "--exclusive", "--output=/dev/null")
    assert cluster.wait(high) == "COMPLETED"
    cluster.release(low)
    assert cluster.wait(low) == "COMPLETED", log.read_text()
    assert told.read_text().split() == [*["ready"] * 4, *["TERM"] * 4]
    assert cluster.job(low)["Restarts"] == "1"


def test_a_lost_node_ends_the_job_or_has_it_started_again(cluster: SlurmCluster) -> None:
    common = ("-N2", "--output=/dev/null")
    stays = cluster.submit("sleep 60", *common, "--nodelist=node1,node2", "--no-requeue")
    again = cluster.submit("sleep 60", *common, "--nodelist=node2,node3", "--requeue")
    cluster.wait(stays, "RUNNING")
    cluster.wait(again, "RUNNING")
    cluster.lose("node2")
    assert cluster.wait(stays) == "NODE_FAIL"
    assert cluster.wait(again, "PENDING") == "PENDING"
    assert cluster.node_state("node2").startswith("down")
    cluster.heal("node2")
    cluster.release(again)
    cluster.wait(again, "RUNNING")
    assert cluster.job(again)["Restarts"] == "1"


def test_the_accounting_answers(cluster: SlurmCluster) -> None:
    job = cluster.submit("exit 3", "--output=/dev/null")
    assert cluster.wait(job) == "FAILED"
    until(lambda: any(row["State"] == "FAILED" for row in cluster.accounted(job)))
    assert cluster.accounted(job)[0]["ExitCode"] == "3:0"
    refused = subprocess.run(["sbatch", "--account=nobodys", "--wrap=true"], capture_output=True, text=True)
    assert refused.returncode != 0 and "account" in refused.stderr


def test_a_killed_controller_comes_back_and_knows_its_jobs(cluster: SlurmCluster) -> None:
    began, state = time.time(), cluster.folder / "state" / "job_state"
    job = cluster.submit("sleep 60", "--output=/dev/null")
    cluster.wait(job, "RUNNING")
    # It writes its state down only now and then.
    until(lambda: state.exists() and state.stat().st_mtime > began)
    for name in ("slurmctld", "slurmdbd"):
        os.kill(daemons(cluster.folder)[name], signal.SIGKILL)
    until(lambda: not {"slurmctld", "slurmdbd"} & set(daemons(cluster.folder)))
    run_testcluster("start", "--folder", str(cluster.folder), "--accounting")
    assert cluster.wait(job, "RUNNING")
    assert cluster.job(job)["Restarts"] == "0"


def test_without_slurm_tests_are_skipped_but_not_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install"):
        programs_or_skip()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install"):
        programs_or_skip()
