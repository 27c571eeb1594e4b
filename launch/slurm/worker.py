"""The command that stands at the end of a batch script: the supervisor, and what it starts on the nodes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from configs.schema import Cluster, Container
from launch.processes import SAVE_SECONDS
from launch.slurm.request import Request

_SAFE = ("-u", "-P")
"""Python without buffers, so that logs tell the last word, and without modules from the current folder."""

_SRUN = ("srun", "--kill-on-bad-exit=1", "--wait=60")
"""One rank that fails ends the step; ranks that outlive the first to end by a minute are ended."""

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"
"""What torchrun passes on: its own, and Slurm's warning, of which it would die by itself."""


def command(request: Request) -> str:
    """The last lines of the script, as the shell reads them."""
    supervisor = [request.python, *_SAFE, "-m", "launch.supervise", str(request.folder), "--"]
    container = request.cluster.container
    python = "python" if container else request.python
    parts = [
        ["exec", *supervisor],
        [*_SRUN, *_by_srun(container, request)],
        _by_hand(container, request),
        _worker(request, python),
    ]
    return " \\\n  ".join(shlex.join(part) for part in parts if part)


def _worker(request: Request, python: str) -> list[str]:
    worker = ["-m", "train.worker", str(request.folder / "run.yaml")]
    if request.cluster.slurm.tasks == "per_device":
        return [python, *_SAFE, *worker]
    torchrun = [
        python, *_SAFE, "-m", "torch.distributed.run",
        f"--nnodes={request.cluster.nodes}", f"--nproc-per-node={request.processes_per_node}",
        "--rdzv-backend=c10d", "--max-restarts=0",
        f"--signals-to-handle={_SIGNALS}", f"--shutdown-timeout={SAVE_SECONDS}",
    ]  # fmt: skip
    # The supervisor sets these; they are read on the node, not where the script starts.
    meet = '--rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID"'
    return ["bash", "-c", f"exec {shlex.join(torchrun)} {meet} {shlex.join(worker)}"]


def _by_srun(container: Container | None, request: Request) -> list[str]:
    """pyxis: options of srun."""
    if container is None or container.runtime != "pyxis":
        return []
    mounts = ",".join(_mounts(container, request))
    return [f"--container-image={container.image}", f"--container-mounts={mounts}", *container.options]


def _by_hand(container: Container | None, request: Request) -> list[str]:
    """Apptainer: a command before the command."""
    if container is None or container.runtime != "apptainer":
        return []
    driver = ["--nv"] if request.cluster.device != "cpu" else []
    mounts = [part for mount in _mounts(container, request) for part in ("--bind", mount)]
    return ["apptainer", "exec", *driver, *mounts, *container.options, container.image]


def _mounts(container: Container, request: Request) -> Sequence[str]:
    """The run's folder and the shared folders; and where ranks tell their node's watcher how they are."""
    here = [request.folder, *_shared(request.cluster), Path("/dev/shm"), Path("/tmp")]
    return tuple(dict.fromkeys([*(f"{folder}:{folder}" for folder in here), *container.mounts]))


def _shared(cluster: Cluster) -> list[Path]:
    return [Path(folder) for folder in (cluster.scratch, cluster.cache) if folder]
