"""What must hold before anything starts; each check refuses in one line. Only a changed run needs torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil

from base.errors import UmbelError
from checkpoint import manifest as manifests
from checkpoint.folders import steps
from configs.compose import differing_keys, load
from configs.schema import RunConfig
from launch import processes
from record.folder import RunFolder
from record.lock import RunLock, holder

if TYPE_CHECKING:
    from data.stream import BatchStream


def check_same_run(config: RunConfig, folder: RunFolder) -> list[tuple[str, Any, Any]]:
    """The defining keys in which the run that owns the folder differs; empty when it may be continued."""
    if not folder.run_yaml.is_file():
        return []
    return differing_keys(load(folder.run_yaml), config)


def check_change(config: RunConfig, folder: RunFolder, stream: BatchStream) -> None:
    """Refuse changed keys under which the newest checkpoint would have seen other batches.

    The workers would refuse too, but by then ``run.yaml`` is changed, and with it every later start.

    Raises:
        UmbelError: names the checkpoint, and from where on the order may change.
    """
    if not check_same_run(config, folder):
        return
    from train.facts import check_order, check_position

    for checkpoint in steps(folder.checkpoints).values():
        try:
            manifest = manifests.read(checkpoint)
        except UmbelError:
            continue  # The workers say so, and go on from the one before.
        check_position(manifest, config.schedule, checkpoint)
        check_order(manifest, stream.order, checkpoint)
        return


def check_one_node(config: RunConfig) -> None:
    """Refuse a run on several machines: this launcher starts processes on its own alone.

    Raises:
        UmbelError: ``cluster.nodes`` is more than 1; says what starts it.
    """
    if config.cluster.nodes > 1:
        file = RunFolder.of(config).run_yaml
        raise UmbelError(
            f"{config.cluster.nodes} nodes, but umbel launch starts processes on this machine only",
            where="cluster.nodes",
            fix=f"set it to 1, or start 'python -m train.worker {file}' under srun or torchrun on each node",
        )


def take(folder: RunFolder, say: Callable[[str], None]) -> RunLock:
    """The launch lock of a run on which nobody works, after waiting for orphans that are saving.

    Raises:
        UmbelError: somebody works on it; says process, host and ``umbel stop``.
    """
    owner = holder(folder, "launch") or holder(folder)
    if owner and _is_orphaned(folder):
        say("an earlier attempt is still saving; waiting for it…")
        deadline = time.monotonic() + processes.SAVE_SECONDS
        while time.monotonic() < deadline and (holder(folder, "launch") or holder(folder)):
            time.sleep(0.2)
    lock = RunLock(folder, "launch").acquire()
    try:
        RunLock(folder).acquire().release()
    except UmbelError:
        lock.release()
        raise
    return lock


def _is_orphaned(folder: RunFolder) -> bool:
    """Whether the launcher that started the present workers is gone."""
    launcher = holder(folder, "launch")
    if launcher is None:
        return False
    return launcher["host"] == socket.gethostname() and not _lives(launcher["pid"])


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def check_port() -> None:
    """Refuse a MASTER_PORT of the user's that is taken; without one a free port is found.

    Raises:
        UmbelError: it is no port, or another process listens on it.
    """
    port = os.environ.get("MASTER_PORT")
    if not port:
        return
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UmbelError(f"{port!r} is no port", where="MASTER_PORT", fix="unset it, and a free one is found")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except OSError as error:
            raise UmbelError(
                f"port {port} is busy ({error.strerror})",
                where="MASTER_PORT",
                fix="unset it, and a free one is found",
            ) from error
