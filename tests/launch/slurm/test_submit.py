"""Submission to a real Slurm. The jobs sleep in their set-up lines; what they run is tested elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from base.errors import UmbelError
from configs.compose import compose
from configs.schema import RunConfig
from launch.slurm import submit as submission
from launch.slurm.jobs import active_jobs
from launch.slurm.submit import submit
from record.events import read_events, record_event
from record.folder import RunFolder
from support.slurm import SlurmCluster

pytestmark = pytest.mark.slow

TINY = (
    "cluster=slurm", "cluster.device=cpu", "cluster.devices_per_node=2", "cluster.slurm.time=00:05:00",
    "cluster.setup=['exec sleep 300']", "cluster.memory_gb=4", "model=bloom_tiny", "parallelism=zero1",
    "schedule.global_batch=8", "run.name=a",
)  # fmt: skip


@pytest.fixture
def place(cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, with a blank in its name."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*overrides: str) -> RunConfig:
    return compose([*TINY, *overrides])


def send(*overrides: str, **options: bool) -> RunFolder:
    config = run(*overrides)
    assert submit([config], typed=["umbel", "launch"], yes=True, **options) == 0
    return RunFolder.of(config)


def submitted(folder: RunFolder) -> list[str]:
    return [event["job"] for event in read_events(folder) if event["event"] == "submitted"]


def test_a_run_is_queued_as_it_was_asked_for(
    place: Path, cluster: SlurmCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = send("cluster.nodes=2", "cluster.spare_nodes=1", "cluster.slurm.exclude=[node1]")
    (job,) = submitted(folder)
    facts = cluster.job(job)
    script = place / "runs" / "a" / "job" / "attempt-0001" / "submit.sh"
    assert (facts["JobName"], facts["Requeue"], facts["Command"]) == ("a", "1", str(script))
    assert (facts["NumNodes"].split("-")[0], facts["TresPerNode"]) == ("3", "gres:gpu:2")
    assert (facts["NumTasks"], facts["CPUs/Task"], facts["MinMemoryNode"]) == ("6", "2", "8000M")
    assert (facts["TimeLimit"], facts["ExcNodeList"]) == ("00:05:00", "node1")
    assert facts["StdOut"] == str(place / "runs" / "a" / "logs" / f"slurm-{job}.log")
    (code,) = (place / "runs" / "a" / "job").glob("code-*")
    assert f"'{code}'${{PYTHONPATH" in script.read_text()
    assert (code / "train" / "worker.py").is_file()
    assert yaml.safe_load((folder.run_yaml).read_text())["cluster"]["nodes"] == 2
    assert {entry.name for entry in script.parent.iterdir()} >= {"job.json", "packages.txt", "run.yaml"}
    said = capsys.readouterr().err
    for words in ("node-hours", "warned", f"a is queued: job {job}", "umbel status a",
                  "umbel logs a -f", "umbel stop a", "umbel resume a", "umbel cancel a"):  # fmt: skip
        assert words in said


def test_what_the_job_prints_lies_in_the_run(place: Path, cluster: SlurmCluster) -> None:
    folder = send("cluster.setup=['echo from the $SLURM_JOB_NAME','exit 7']")
    (job,) = submitted(folder)
    assert cluster.wait(job) == "FAILED"
    assert (folder.logs / f"slurm-{job}.log").read_text() == "from the a\n"


def test_a_name_in_use_is_refused(place: Path, cluster: SlurmCluster) -> None:
    folder = send()
    (job,) = submitted(folder)
    with pytest.raises(UmbelError, match=rf"a: job {job} of this run is (PENDING|RUNNING); umbel stop a"):
        send()
    assert [each.number for each in active_jobs(folder)] == [job]
    other = send("run.dir=others")
    assert len(submitted(other)) == 1


def test_a_job_whose_submission_was_never_written_down_is_known(place: Path, cluster: SlurmCluster) -> None:
    """The launcher was killed between sbatch and its event."""
    folder = send()
    folder.events.unlink()
    with pytest.raises(UmbelError, match="of this run is"):
        send()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["cluster.slurm.partition=mian"],
            "cluster.slurm.partition: no partition 'mian' here; did you mean 'main'",
        ),
        (["cluster.slurm.time=02:00:00"], "02:00:00 is beyond the limit of partition main: 01:00:00"),
        (
            ["cluster.slurm.partition=short"],
            "cluster.slurm.time: 00:05:00 is beyond the limit of partition short: 00:02:00",
        ),
        (
            ["cluster.devices_per_node=8"],
            "8 gpu on each node are asked for, but nodes of partition main have 4",
        ),
        (["cluster.slurm.gres=tpu"], "no node of partition main has any tpu"),
        (
            ["cluster.nodes=4", "cluster.spare_nodes=1"],
            "5 nodes with 1 spare are asked for, but a job in main",
        ),
        (["cluster.slurm.account=nobody"], "sbatch: .*[Ii]nvalid account"),
        (["cluster.slurm.qos=gold"], "sbatch: .*[Ii]nvalid qos"),
        (["cluster.slurm.constraint=h100"], "sbatch: .*[Ii]nvalid feature"),
        (["cluster.slurm.cpus_per_device=100"], "sbatch: .*More processors requested"),
        (["schedule.global_batch=7"], "not divisible"),
    ],
)
def test_what_slurm_would_refuse_is_refused_before(
    place: Path, cluster: SlurmCluster, overrides: list[str], line: str
) -> None:
    with pytest.raises(UmbelError, match=line):
        send(*overrides)
    assert list(place.iterdir()) == []
    assert cluster.command("squeue", "--noheader") == ""


def test_nothing_is_submitted_that_nobody_agreed_to(place: Path, cluster: SlurmCluster) -> None:
    with pytest.raises(UmbelError, match="nobody is here to say yes; pass --yes"):
        submit([run()], typed=[])
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("answer", "code", "jobs"), [("y", 0, 1), ("n", 1, 0)])
def test_a_terminal_is_asked(place: Path, cluster: SlurmCluster, answer: str, code: int, jobs: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "umbel", "launch", *TINY]
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    os.write(ours, f"{answer}\n".encode())
    _, said = process.communicate(timeout=60)
    os.close(ours), os.close(theirs)
    assert process.returncode == code, said
    assert "Submit? [y/N]" in said
    assert len(cluster.command("squeue", "--noheader").splitlines()) == jobs
    assert (place / "runs").exists() == bool(jobs)


def test_a_node_that_failed_twice_is_not_asked_for_again(
    place: Path, cluster: SlurmCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(Path("runs/a")).create()
    for node in ("node2", "node3", "node2", "gone", "gone"):
        record_event(folder, "blamed", node=node, why="uncorrectable ECC error")
    send("cluster.nodes=2", "cluster.slurm.exclude=[node4]")
    facts = cluster.job(submitted(folder)[0])
    assert facts["ExcNodeList"] == "node[2,4]"
    assert "without node4, node2 (blamed for faults)" in " ".join(capsys.readouterr().err.split())
    assert yaml.safe_load(folder.run_yaml.read_text())["cluster"]["slurm"]["exclude"] == ["node4"]


def test_a_chain_of_dependencies(place: Path, cluster: SlurmCluster) -> None:
    folder = send("cluster.slurm.chain=dependency", "cluster.slurm.jobs=3")
    first, second, third = submitted(folder)
    assert f"afterany:{first}" in cluster.job(second)["Dependency"]
    assert f"afterany:{second}" in cluster.job(third)["Dependency"]
    cluster.command("scancel", first)
    cluster.wait(second, "RUNNING")


def test_an_array_is_one_submission_and_runs_one_by_one(place: Path, cluster: SlurmCluster) -> None:
    folder = send("cluster.slurm.chain=array", "cluster.slurm.jobs=3")
    (job,) = submitted(folder)
    cluster.wait(job, "RUNNING")
    states = cluster.command("squeue", "--noheader", "--array", f"--jobs={job}", "--format=%T").split()
    assert sorted(states) == ["PENDING", "PENDING", "RUNNING"]


def test_a_submission_that_fails_leaves_no_new_run(
    place: Path, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> str:
        raise UmbelError("Requested node configuration is not available", where="sbatch")

    with monkeypatch.context() as patched:
        patched.setattr(submission, "submit_script", refused)
        with pytest.raises(UmbelError, match="not available"):
            send()
        assert list((place / "runs").iterdir()) == []
    folder = send()
    cluster.command("scancel", submitted(folder)[0])
    cluster.wait(submitted(folder)[0], "CANCELLED")
    before = folder.run_yaml.read_bytes()
    monkeypatch.setattr(submission, "submit_script", refused)
    with pytest.raises(UmbelError, match="not available"):
        send("cluster.nodes=2")
    assert folder.run_yaml.read_bytes() == before


def test_a_chain_that_breaks_keeps_what_is_queued(
    place: Path, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = submission.submit_script

    def once(*arguments: object, after: str | None = None, **rest: object) -> str:
        if after is not None:
            raise UmbelError("job violates accounting/QOS policy", where="sbatch")
        return real(*arguments, after=after, **rest)

    monkeypatch.setattr(submission, "submit_script", once)
    with pytest.raises(UmbelError, match="policy"):
        send("cluster.slurm.chain=dependency", "cluster.slurm.jobs=2")
    folder = RunFolder(Path("runs/a"))
    (job,) = submitted(folder)
    assert f"a: job {job} is queued already; umbel stop a" in capsys.readouterr().err
    assert [each.number for each in active_jobs(folder)] == [job]


def test_a_sweep_is_a_job_for_each_run(place: Path, cluster: SlurmCluster) -> None:
    from launch.multirun import expand

    began = time.monotonic()
    configs = expand([*TINY, "optimizer.lr=1e-4,3e-4"])
    assert submit(configs, typed=[], yes=True) == 0
    assert time.monotonic() - began < 60
    names = cluster.command("squeue", "--noheader", "--format=%j").split()
    assert sorted(names) == ["a-0", "a-1"]
    rates = [yaml.safe_load((place / "runs" / name / "run.yaml").read_text()) for name in ("a-0", "a-1")]
    assert [each["optimizer"]["lr"] for each in rates] == [1e-4, 3e-4]


def test_one_bad_run_of_a_sweep_keeps_all_from_the_queue(place: Path, cluster: SlurmCluster) -> None:
    configs = [run("run.name=b"), run("run.name=c", "cluster.slurm.partition=none")]
    with pytest.raises(UmbelError, match="no partition"):
        submit(configs, typed=[], yes=True)
    assert list(place.iterdir()) == []
    assert cluster.command("squeue", "--noheader") == ""


def test_no_slurm_here_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UmbelError, match="no Slurm here: there is no sbatch in PATH"):
        submit([run()], typed=[], yes=True)
    assert list(tmp_path.iterdir()) == []
