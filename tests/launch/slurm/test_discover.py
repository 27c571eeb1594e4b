"""`umbel doctor --cluster`: what it reads of a real site, and that its profile is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from base.errors import UmbelError
from configs.compose import compose
from launch.cli import app
from launch.slurm.discover import Discovery, Room, discover, profile
from launch.slurm.queries import Association, Partition, Qos
from support.slurm import SlurmCluster

QUIET = "--output=/dev/null"


def room(name: str, **facts: object) -> Room:
    partition = Partition(
        name=name,
        is_default=False,
        state="UP",
        limit=72000.0,
        default_time=None,
        nodes=2,
        max_nodes=None,
        qos=None,
    )
    usual = {"nodes": 2, "working": 2, "device": "gpu:a100", "per_node": 8, "total": 16, "free": 3}
    return Room(partition=partition, cpus=64, memory=512000, **{**usual, **facts})  # type: ignore[arg-type]


def test_a_profile_is_of_the_partition_with_most_devices() -> None:
    account = Association(account="abc@a100", partition=None, qos=("normal", "long"))
    rooms = [room("cpu", device=None, per_node=0, total=0, free=0), room("gpu_p5")]
    found = Discovery(rooms=rooms, accounts=[account], qualities=[Qos(name="long", limit=360000.0)])
    text = profile(found, "ours")
    read = yaml.safe_load(text)
    assert read["slurm"] == {
        "partition": "gpu_p5", "account": "abc@a100", "time": "20:00:00", "gres": "gpu:a100",
    }  # fmt: skip
    assert read["devices_per_node"] == 8
    assert "# of cpu, gpu_p5" in text and "# qos: long (4-04:00:00)" in text


def test_a_site_without_devices_or_accounts() -> None:
    found = Discovery(rooms=[room("all", device=None, per_node=0, total=0)], accounts=[], qualities=[])
    read = yaml.safe_load(profile(found, "ours"))
    assert read["device"] == "cpu" and set(read["slurm"]) == {"partition", "time"}


def umbel(*words: str) -> Result:
    result = CliRunner().invoke(app, ["doctor", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_no_slurm_here_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UmbelError, match="no Slurm here"):
        umbel("--cluster")
    with pytest.raises(UmbelError, match="--write: writes a cluster's profile; add --cluster"):
        umbel("--write", "x.yaml")


@pytest.mark.slow
def test_a_real_site_is_read_and_its_profile_is_taken(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    busy = cluster.submit("sleep 60", QUIET, "--gres=gpu:3", "--nodes=2")
    cluster.wait(busy, "RUNNING")
    cluster.command("scontrol", "update", "nodename=node4", "state=drain", "reason=test")
    rooms = {each.partition.name: each for each in discover().rooms}
    assert (rooms["main"].total, rooms["main"].free, rooms["main"].working) == (12, 6, 3)
    result = umbel("--cluster")
    assert "6 of 12 gpu free" in result.stderr and "3 of 4 work" in result.stderr
    assert yaml.safe_load(result.stdout)["slurm"]["partition"] == "main"
    assert json.loads(umbel("--cluster", "--json").stdout)["rooms"][0]["per_node"] == 4
    file = tmp_path / "mine" / "cluster" / "site.yaml"
    umbel("--cluster", "--write", str(file))
    config = compose(["cluster=site"], tmp_path / "mine").cluster
    assert (config.name, config.launcher, config.devices_per_node) == ("site", "slurm", 4)
    with pytest.raises(UmbelError, match=r"site\.yaml: is in the way"):
        umbel("--cluster", "--write", str(file))
