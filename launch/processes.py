"""Starting worker processes on this machine, and ending them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from configs.schema import RunConfig
from launch.environment import cluster_variables

HOME = Path(__file__).resolve().parent.parent
SAVE_SECONDS = 600
"""How long workers may take over a collective save before they are killed, or another start gives up."""

_FOREIGN = re.compile(
    r"RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_(RANK|WORLD_SIZE|NAME)"
    r"|TORCHELASTIC_.*|SLURM_STEP_ID|SLURM_PROCID"
)
"""Variables that place a process in a world: those of the caller's shell say nothing of our workers."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def command(run_yaml: Path, world_size: int) -> list[str]:
    """One process needs no launcher; torchrun starts more, on a free port unless MASTER_PORT is set."""
    worker = ["-m", "train.worker", str(run_yaml.resolve())]
    if world_size == 1:
        return [sys.executable, *worker]
    port = os.environ.get("MASTER_PORT")
    meet = ["--master-addr", "127.0.0.1", "--master-port", port] if port else ["--standalone"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *meet, "--nproc-per-node", str(world_size)]
    return torchrun + worker


def supervised(folder: Path, workers: list[str]) -> list[str]:
    """The supervisor that starts these workers, and starts them again."""
    return [sys.executable, "-P", "-m", "launch.supervise", str(folder.resolve()), "--", *workers]


def environment(config: RunConfig, processes: int) -> dict[str, str]:
    """The caller's environment without a place in a world, and what makes packages win and cores suffice."""
    cores = len(os.sched_getaffinity(0))
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVE_SECONDS),
    }
    paths = [str(HOME), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    fixed = {
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
    }
    if config.cluster.device == "cpu":
        fixed["CUDA_VISIBLE_DEVICES"] = ""
    callers = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
    return {**defaults, **callers, **cluster_variables(config.cluster), **fixed}


def start(
    arguments: list[str],
    variables: dict[str, str],
    log: Path,
    *,
    keep: tuple[int, ...] = (),
    detach: bool = False,
    session: bool = True,
) -> subprocess.Popen[bytes]:
    """Start processes in a session of their own, so that Ctrl-C reaches only the launcher.

    Their output goes to ``log``. File descriptors in ``keep`` stay open in the child. Unless detached, the
    death of their parent, kill -9 included, sends them SIGTERM: a collective save. Without a ``session`` of
    their own `end` takes them for helpers of the caller and passes them by.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        return subprocess.Popen(
            arguments,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=session,
            pass_fds=keep,
            preexec_fn=None if detach else _die_with(os.getpid()),
        )


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent died (a killed torchrun), so that `end` finds them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end(process: subprocess.Popen[bytes], kind: int = signal.SIGKILL) -> int:
    """Signal the process and all that came from it; returns how many still live.

    torchrun gives each worker a session of its own, so no process group holds them all; what they share is
    that none is in the caller's session.
    """
    process.poll()
    living = 0
    for member in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(member.pid) == os.getsid(0):
                continue
            if member.status() == psutil.STATUS_ZOMBIE:
                if member.pid != process.pid:
                    _bury(member)
                continue
            member.send_signal(kind)
            living += 1
    return living


def _bury(orphan: psutil.Process) -> None:
    """Whoever adopts orphans must bury them: a supervisor outlives many."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(orphan.pid, os.WNOHANG)


def _die_with(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the request was made
            os.kill(os.getpid(), signal.SIGTERM)

    return prepare


def _prctl(option: int, value: int) -> None:
    _LIBC.prctl(option, value, 0, 0, 0)


_LIBC = ctypes.CDLL(None, use_errno=True)
