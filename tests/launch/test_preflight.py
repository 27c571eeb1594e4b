from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from base.errors import UmbelError
from configs.compose import compose, save
from data.order.global_order import GlobalOrder
from launch import plan, preflight, processes
from launch.fits import check_fits
from launch.preflight import check_change, check_same_run, take
from record.folder import RunFolder
from record.lock import RunLock, is_held
from train.facts import order_facts

DEMO = ["experiment=demo", "parallelism.processes=1", "cluster.device=cpu"]


def quiet(_text: str) -> None: ...


def test_only_defining_keys_make_another_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "demo").create()
    assert check_same_run(compose(DEMO), folder) == []
    save(compose(DEMO), folder.run_yaml)
    assert check_same_run(compose([*DEMO, "parallelism=zero3", "checkpoint.every=9"]), folder) == []
    assert check_same_run(compose([*DEMO, "run.seed=7"]), folder) == [("run.seed", 1234, 7)]


def test_a_change_of_what_was_read_is_refused_before_the_run_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(*skip: list[int]) -> Any:
        return SimpleNamespace(order=GlobalOrder([(0, {"code": 1.0})], [*skip], batch, seed=1))

    began = compose([*DEMO, f"run.dir={tmp_path}"])
    folder, batch = RunFolder.of(began).create(), began.schedule.global_batch
    save(began, folder.run_yaml)
    read = {"step": 3, "sequences": 3 * batch, "extra": {"order": order_facts(stream().order, 3 * batch)}}
    (folder.checkpoints / "step-00000003").mkdir(parents=True)
    monkeypatch.setattr(preflight.manifests, "read", lambda _folder: read)
    changed = dataclasses.replace(began, data=dataclasses.replace(began.data, held_out=0.03))

    check_change(began, folder, stream([0, batch]))  # nothing was asked to change
    check_change(changed, folder, stream([3 * batch, 4 * batch]))
    with pytest.raises(UmbelError, match=f"number {3 * batch} of the global order"):
        check_change(changed, folder, stream([batch, 2 * batch]))
    other = dataclasses.replace(changed.schedule, global_batch=2 * batch)
    with pytest.raises(UmbelError, match="another batch is another run"):
        check_change(dataclasses.replace(changed, schedule=other), folder, stream())


def test_a_run_in_use_is_refused_at_once_and_stays_untouched(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "demo").create()
    with RunLock(folder), pytest.raises(UmbelError, match="in use by process"):
        take(folder, quiet)
    assert not is_held(folder, "launch")


def test_the_workers_of_a_dead_launcher_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "demo").create()
    dead = subprocess.Popen(["true"])
    dead.wait()
    lock, told = RunLock(folder, "launch").acquire(), []
    lock.sign(dead.pid)
    monkeypatch.setattr(preflight.time, "sleep", lambda _seconds: lock.release())
    taken = take(folder, told.append)
    taken.release()
    assert told == ["an earlier attempt is still saving; waiting for it…"]


@pytest.mark.parametrize("port", ["http", "0", "70000"])
def test_a_port_that_is_none(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(UmbelError, match="is no port"):
        preflight.check_port()


def test_a_model_too_large_is_told_before_anything_starts(tmp_path: Path) -> None:
    config = compose([*DEMO, "cluster.memory_gb=0.01", f"run.dir={tmp_path}"])
    with pytest.raises(UmbelError, match="too large for the memory"):
        check_fits(config, RunFolder.of(config), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose([*DEMO, f"run.dir={tmp_path}"])
    made = dataclasses.replace(plan.make_plan(config, 1), disk_free=1000)
    monkeypatch.setattr(plan, "make_plan", lambda _config, _processes: made)
    with pytest.raises(UmbelError, match=r"1000 B are free, but \d \+ 1 checkpoints of .* MiB need"):
        check_fits(config, RunFolder.of(config), 1)


def test_waiting_for_a_save_ends_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "demo").create()
    dead = subprocess.Popen(["true"])
    dead.wait()
    monkeypatch.setattr("launch.processes.SAVE_SECONDS", 0)
    with RunLock(folder, "launch") as lock:
        lock.sign(dead.pid)
        with pytest.raises(UmbelError, match="in use by process"):
            take(folder, quiet)


def test_everybody_waits_as_long_for_a_save() -> None:
    from train.worker import LOCK_WAIT_SECONDS

    assert LOCK_WAIT_SECONDS == processes.SAVE_SECONDS


def test_several_nodes_are_not_for_this_launcher() -> None:
    preflight.check_one_node(compose(DEMO))
    with pytest.raises(UmbelError, match=r"python -m train.worker runs/demo/run.yaml' under srun"):
        preflight.check_one_node(compose([*DEMO, "cluster.nodes=2"]))
