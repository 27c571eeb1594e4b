"""A worker without a model: keeps the worker's contract on disk, and fails in the ways a test asks for.

Faults that a real worker cannot be made to have on demand: STAND_IN = fail, crash, kill, survivor, early,
slow (to save) or deaf; ``kill-1`` is rank 1's. With ``-once`` behind it only the first start has it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from configs.compose import load
from record.control import clear_stop, stop_reason, stop_requested
from record.events import latest, next_attempt, read_events, record_event, utc_now
from record.folder import RunFolder
from record.lock import RunLock
from record.metrics import MetricsWriter

SECONDS_PER_STEP, SAVE_SECONDS = 0.05, 4.0
terminated: list[int] = []


def on_term(number: int, _frame: FrameType | None) -> None:
    terminated.append(number)


def main(run_yaml: Path) -> None:
    folder, steps = RunFolder(run_yaml.parent), load(run_yaml).schedule.steps
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0")
    fault = fault_of(folder, rank)
    for kind in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(kind, on_term)
    last = int(os.environ.get("UMBEL_STOP_AFTER", steps))
    if rank > 0:
        wait_for_end(folder, fault)
        return
    with RunLock(folder):
        saved = (latest(read_events(folder), "checkpoint") or {"step": 0})["step"]
        attempt = next_attempt(folder)
        if fault == "early":
            raise RuntimeError("a fault before the first step")
        record_event(folder, "start", attempt=attempt, step=saved, world_size=1, zero_stage=0)
        writer, step = MetricsWriter(folder, attempt), saved
        while step < last and not stops(folder, fault):
            step += 1
            time.sleep(SECONDS_PER_STEP)
            facts = {"loss": 5 - step / 100, "sequences": 4 * step, "tokens": 64 * step}
            writer.write([{"step": step, **facts, "tokens_per_second": 1280.0}])
            misbehave(folder, fault, step)
        if fault == "slow":
            time.sleep(SAVE_SECONDS)
        record_event(folder, "checkpoint", step=step, seconds=0.1, bytes=1000)
        reason = signal.Signals(terminated[0]).name if terminated else stop_reason(folder) or "asked"
        record_event(folder, "finished" if step == steps else "stopped", step=step, reason=reason)
        clear_stop(folder)


def fault_of(folder: RunFolder, rank: int) -> str | None:
    fault, mark = os.environ.get("STAND_IN", ""), folder.path / f"rank-{rank}-had-its-fault"
    if not fault or (fault.endswith("-once") and mark.exists()):
        return None
    mark.touch()
    return fault.removesuffix("-once")


def stops(folder: RunFolder, fault: str | None) -> bool:
    return fault != "deaf" and (bool(terminated) or stop_requested(folder))


def misbehave(folder: RunFolder, fault: str | None, step: int) -> None:
    if step < 3:
        return
    if fault == "fail":
        record_event(folder, "failed", rank=0, error="loss is NaN at step 3", exit_code=2)
        sys.exit(2)
    if fault == "crash":
        raise RuntimeError("a fault nobody foresaw")
    if fault == "survivor":
        record_event(folder, "failed", rank=0, error="connection closed by peer", exit_code=1)
    if fault in ("kill", "survivor"):
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for_end(folder: RunFolder, fault: str | None) -> None:
    began = utc_now()
    if fault == "kill-1":
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    while (latest(read_events(folder), "finished", "stopped") or {"time": ""})["time"] < began:
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
