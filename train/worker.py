"""One process of a run, alone, under torchrun or under Slurm: ``python -m train.worker RUN_YAML``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

from base.errors import RunFailed, UmbelError
from configs.compose import load
from data.places.retry import BadFile
from record.events import next_attempt, record_event
from record.folder import RunFolder
from record.heartbeats import node_name
from record.lock import RunLock
from record.rank_logs import take_log
from record.rollback import finish_rollback
from train import distributed
from train.distributed import World
from train.heartbeat import Pulse
from train.session import Session
from train.together import PeerFailed

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal a process gets when its parent dies."""

LOCK_WAIT_SECONDS = 600
"""The workers of an attempt whose launcher was killed may still be saving (launch's SAVE_SECONDS)."""


def main(run_yaml: Path) -> int:
    """Run to the end, to a stop or to a failure; returns the exit code."""
    folder = RunFolder(run_yaml.resolve().parent)
    pulse = Pulse(folder)
    _follow_torchrun()
    try:
        world = distributed.start(load(run_yaml).cluster)
        pulse.join(world)
        lock = _lock(folder, world)
        if world.is_first:
            finish_rollback(folder)
        attempt = world.first(next_attempt(folder) if world.is_first else 0)
        config = load(run_yaml)  # not before: a rollback may have left it to be changed
        _redirect(take_log(folder, attempt, world.rank))
        Session(config, folder, world, attempt, lock, pulse).run()
        world.barrier()
        pulse.close()
        lock.release()
        distributed.stop()
    except Exception as error:
        return _failed(folder, error)
    return 0


def _lock(folder: RunFolder, world: World) -> RunLock:
    """Rank 0 locks the run for its life; all hear whether it could."""
    lock, error = RunLock(folder), None
    if world.is_first:
        try:
            lock.acquire(LOCK_WAIT_SECONDS)
        except UmbelError as caught:
            error = caught
    if world.first(int(error is None)):
        return lock
    raise error or PeerFailed("is in use", where=str(folder.path))


def _follow_torchrun() -> None:
    """If torchrun is killed, nobody else ends its workers: let the kernel ask them to save and stop."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = os.getppid()  # may well be 1: a container that runs torchrun and nothing else
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise SystemExit(1)  # it was killed before the kernel knew whom to watch


def _redirect(log: Path) -> None:
    """From here on, what this process and its libraries print goes to its own file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _failed(folder: RunFolder, error: Exception) -> int:
    """Tell the launcher, unless another process tells it better."""
    traceback.print_exc()
    code = error.exit_code if isinstance(error, UmbelError) else 1
    text = _told(error)
    if not isinstance(error, PeerFailed):
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        facts = {"rank": int(rank), "error": text, "exit_code": code}
        try:
            record_event(folder, "failed", **facts, node=node_name(), final=_is_final(error))
        except OSError:
            print(f"umbel: error: {text}", file=sys.stderr)
    return code


def _is_final(error: Exception) -> bool:
    """Whether another start would end alike: what Umbel itself finds wrong in a run, but for a file that the
    next start leaves out."""
    return isinstance(error, RunFailed) and not isinstance(error.__cause__, BadFile)


def _told(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, UmbelError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after a failure, destructors of process groups may wait for processes that are gone.
    os._exit(code)
