"""kill -9 of any process of a run, at any moment: the next start goes on, and nothing is seen twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from checkpoint.reader import StateReader, latest
from record.events import read_events
from record.folder import RunFolder
from record.lock import is_held
from record.metrics import read_metrics
from support.runs import TINY, write_corpus

KILLS = int(os.environ.get("KILLS", "6"))
STEPS = 100_000  # never reached
NEEDED = ("launcher", "supervisor")
"""Processes without which a run ends. All others are started again."""


class Victim:
    """A run under `umbel launch`, two processes, and ways to kill parts of it."""

    def __init__(self, home: Path, name: str, mode: str) -> None:
        self.home, self.folder = home, RunFolder(home / "runs" / name)
        overrides = [
            *TINY,
            f"run.name={name}",
            "data.path=corpus.jsonl",
            f"data.mode={mode}",
            f"schedule.steps={STEPS}",
            "schedule.name=constant",
            "checkpoint.every=5",
            "checkpoint.keep_last=2",
            "tracker.log_every=2",
            "parallelism=ddp",
            "parallelism.processes=2",
            "parallelism.micro_batch=2",
        ]
        self.command = [sys.executable, "-m", "umbel", "launch", "--yes", *overrides]

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        with open(self.home / "launch.out", "ab") as out:
            return subprocess.Popen(
                self.command,
                cwd=self.home,
                stdout=out,
                stderr=out,
                env=os.environ | env,
                start_new_session=True,
            )

    def finish(self, last_step: int) -> None:
        """Let it run to a step and stop there in order."""
        process = self.start(UMBEL_STOP_AFTER=str(last_step))
        assert process.wait(timeout=120) == 0, (self.home / "launch.out").read_text()[-3000:]

    def wait_for_step(self, process: subprocess.Popen[bytes]) -> None:
        """Until this start has made a step."""
        before = self.folder.metrics.stat().st_size if self.folder.metrics.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if self.folder.metrics.exists() and self.folder.metrics.stat().st_size > before:
                return
            time.sleep(0.05)

    def last_step(self) -> int:
        lines = read_metrics(self.folder)
        return lines[-1]["step"] if lines else 0


def kill_one(process: subprocess.Popen[bytes], draw: random.Random, only: tuple[str, ...] = ()) -> str:
    """kill -9 of one process of the run's tree, chosen at random; says which it was."""
    roles: dict[psutil.Process, str] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        roles[launcher] = "launcher"
        for child in launcher.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it died just now
                roles[child] = role(child.cmdline())
    for victim in draw.sample(list(roles), len(roles)):
        if not only or roles[victim] in only:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
                return roles[victim]
    return "nobody: it was gone"


def role(command: list[str]) -> str:
    """What a process is, from its command."""
    return "supervisor" if "launch.supervise" in command else " ".join(command[1:5])[-60:]


def wait_until_gone(victim: Victim, process: subprocess.Popen[bytes]) -> None:
    """Killed or orphaned, all of it ends by itself; no hand is needed."""
    process.wait(timeout=120)
    deadline = time.monotonic() + 120
    while is_held(victim.folder) or is_held(victim.folder, "launch"):
        assert time.monotonic() < deadline, "something of the run lives on"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(75 * KILLS)
@pytest.mark.parametrize("mode", ["prepared", "streaming"])
def test_a_run_survives_kills_at_random_moments(tmp_path: Path, mode: str) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    draw = random.Random(f"{os.environ.get('SEED', '20')} {mode}")
    victim = Victim(tmp_path, "killed", mode)
    killed: list[str] = []
    for life in range(KILLS):
        process = victim.start()
        # One in four dies while it starts, the others while they train and save.
        if life % 4:
            victim.wait_for_step(process)
        time.sleep(draw.uniform(0.0, 4.0))
        killed.append(kill_one(process, draw))
        if killed[-1] not in NEEDED:
            # It is started again, and the run goes on: so one is killed that it needs. Only a worker that
            # fails before its first step ends the run.
            victim.wait_for_step(process)
            assert process.poll() is None or not life % 4, f"the run did not go on: {killed}"
            killed.append(kill_one(process, draw, only=NEEDED))
        wait_until_gone(victim, process)
    last = victim.last_step() + 10
    victim.finish(last)

    lines = read_metrics(victim.folder)
    assert [line["step"] for line in lines] == list(range(1, last + 1)), f"each step once; killed: {killed}"
    starts = [event for event in read_events(victim.folder) if event["event"] == "start"]
    assert len(starts) >= KILLS // 2, f"too few lives reached training: {killed}"
    saved = {event["step"] for event in read_events(victim.folder) if event["event"] == "checkpoint"}
    assert all(start["step"] % 5 == 0 or start["step"] in saved for start in starts)
    assert max(start["step"] for start in starts) > 0, "no life went on from another's checkpoint"

    undisturbed = Victim(tmp_path, "undisturbed", mode)
    undisturbed.finish(last)
    for line, expected in zip(lines, read_metrics(undisturbed.folder), strict=True):
        assert (line["step"], line["loss"], line["tokens"]) == (
            expected["step"],
            expected["loss"],
            expected["tokens"],
        )
    assert weights(victim.folder) == weights(undisturbed.folder), "and the same weights to the bit"


def weights(folder: RunFolder) -> str:
    """Digests of all weights and moments of the newest checkpoint."""
    newest = latest(folder.checkpoints, verify="full")
    assert newest is not None
    with StateReader(newest) as reader:
        found = {
            f"{name}|{kind}": hash(reader.read(name, kind).tobytes())
            for kind in ("master", "exp_avg", "exp_avg_sq")
            for name in reader.names(kind)
        }
    return json.dumps(found, sort_keys=True)
