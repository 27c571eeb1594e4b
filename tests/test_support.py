"""The helpers that other tests stand on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from configs.schema import RunConfig
from support.processes import run_commands, run_workers


def sum_of_ranks(offset: int) -> list[int]:
    import torch
    from torch import distributed

    value = torch.tensor([distributed.get_rank() + offset])
    distributed.all_reduce(value)
    return [distributed.get_rank(), distributed.get_world_size(), int(value)]


def fail_on_rank_1() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("stalk broken")
    time.sleep(60)


def test_a_function_runs_in_every_process_of_a_group() -> None:
    assert run_workers(2, sum_of_ranks, 10) == [[0, 2, 21], [1, 2, 21]]


def test_a_failing_process_ends_the_others_and_is_quoted() -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match="stalk broken"):
        run_workers(2, fail_on_rank_1, gloo=False)
    assert time.monotonic() - began < 30


def test_a_timeout_leaves_no_process_behind(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path)]
    parent = f"import subprocess; subprocess.run({sleeper!r})"
    (finished,) = run_commands(1, [sys.executable, "-c", parent], timeout=2)
    assert finished.returncode < 0
    time.sleep(0.2)
    assert not [child for child in psutil.process_iter(["cmdline"]) if child.info["cmdline"] == sleeper]


def test_a_tiny_run_stays_in_its_folder(tiny_config: RunConfig, tmp_path: Path) -> None:
    assert Path(tiny_config.run.dir).parent == tmp_path
    assert tiny_config.data.path == str(tmp_path / "corpus.jsonl")


def test_tests_see_no_home_and_no_hub(tmp_path: Path) -> None:
    show = "import huggingface_hub.constants as hub, pathlib; print(hub.HF_HUB_OFFLINE, pathlib.Path.home())"
    told = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["True", os.environ["HOME"]]
    assert "umbel-tests-" in os.environ["HOME"]
