"""`umbel preflight`, without the screen: which nodes, and a look at all of them."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from base.errors import UmbelError
from base.files import write_text
from configs.schema import RunConfig
from launch.nodes.reference import History
from launch.nodes.run import Asked, Survey, survey
from launch.supervise.place import Place
from record.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Nodes in their order, what was seen of them, and how long that took."""

    nodes: list[str]
    survey: Survey
    seconds: float

    @property
    def passing(self) -> list[str]:
        return [node for node in self.nodes if node not in self.survey.failing]


def needs_allocation(config: RunConfig) -> bool:
    """Whether the nodes must be asked of Slurm first."""
    return config.cluster.launcher == "slurm" and "SLURM_JOB_ID" not in os.environ


def look(config: RunConfig, count: int | None) -> Looked:
    """Look at this machine, or at the nodes of the Slurm job that this process is in.

    Args:
        config: with absolute paths.
        count: how many nodes; None: all there are.

    Raises:
        UmbelError: there are fewer, or the folder of the runs cannot be written.
    """
    began, runs = time.monotonic(), Path(config.run.dir)
    folder = RunFolder(runs / ".nodes" / f"check-{secrets.token_hex(4)}")
    place = _place(config, folder)
    nodes = place.nodes()
    if count is not None and count > len(nodes):
        raise UmbelError(f"{count} nodes are asked for, but {len(nodes)} are here", where="--nodes")
    asked = Asked(
        place=place,
        cluster=config.cluster,
        run=folder,
        folder=folder.path / "answers",
        history=History(runs / ".nodes"),
    )
    try:
        found = survey(asked, nodes[:count])
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
    return Looked(nodes=nodes[:count], survey=found, seconds=time.monotonic() - began)


def write_lists(looked: Looked, folder: Path) -> None:
    """``passing_nodes.txt`` and ``failing_nodes.txt``, a name a line.

    Raises:
        UmbelError: they cannot be written.
    """
    try:
        write_text(folder / "passing_nodes.txt", _lines(looked.passing))
        write_text(folder / "failing_nodes.txt", _lines(list(looked.survey.failing)))
    except OSError as error:
        raise UmbelError(f"cannot be written ({error.strerror})", where=str(folder)) from error


def _lines(names: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def _place(config: RunConfig, folder: RunFolder) -> Place:
    if config.cluster.launcher == "slurm":
        from launch.supervise.slurm_place import SlurmPlace

        return SlurmPlace(folder, config.cluster)
    from launch.supervise.local_place import LocalPlace

    return LocalPlace(folder.path)
