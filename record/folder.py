"""The run folder, and where everything in it lies."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from base.errors import UmbelError, did_you_mean
from configs.schema import RunConfig


@dataclass(frozen=True)
class RunFolder:
    """``runs/<name>/``. Holds no state of its own: only names of files."""

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """The folder ``<run.dir>/<run.name>`` of a run."""
        return cls(Path(config.run.dir) / config.run.name)

    @classmethod
    def find(cls, name_or_path: str | Path, runs: Path = Path("runs")) -> RunFolder:
        """The existing run with that name under ``runs``, or at that path.

        Raises:
            UmbelError: there is none; names that are near are listed.
        """
        for path in (Path(name_or_path), runs / name_or_path):
            if (path / "run.yaml").is_file():
                return cls(path)
        known = [folder.name for folder in cls.all(runs)]
        fix = did_you_mean(str(name_or_path), known) if known else "start one with 'umbel launch'"
        raise UmbelError(f"no such run in {runs}/", where=str(name_or_path), fix=fix)

    @classmethod
    def all(cls, runs: Path = Path("runs")) -> list[RunFolder]:
        """Every run under ``runs``, by name."""
        return [cls(file.parent) for file in sorted(runs.glob("*/run.yaml"))]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def handle(self) -> str:
        """What a user types to mean this run here: its name, or its path where it is not in runs/."""
        return self.path.name if self.path.parent == Path("runs") else str(self.path)

    @property
    def run_yaml(self) -> Path:
        return self.path / "run.yaml"

    @property
    def job(self) -> Path:
        return self.path / "job"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox"

    @property
    def control(self) -> Path:
        return self.path / "control"

    def attempt_job(self, attempt: int) -> Path:
        """Code, command and config that an attempt was started with."""
        return self.job / f"attempt-{attempt:04d}"

    def rank_log(self, attempt: int, rank: int) -> Path:
        """What one rank of an attempt printed."""
        return self.logs / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"

    def create(self) -> RunFolder:
        """Make the folder and its rooms; harmless when they are there.

        Raises:
            UmbelError: they cannot be made or written to.
        """
        rooms = (self.path, self.job, self.logs, self.checkpoints, self.outbox, self.control)
        try:
            for room in rooms:
                room.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror or "error") from error
        self._check_writable(rooms)
        _share_with_group(self.control)
        return self

    def _check_writable(self, rooms: Iterable[Path]) -> None:
        for room in rooms:
            if not os.access(room, os.W_OK | os.X_OK):
                raise RunFolder(room)._unwritable("Permission denied")

    def _unwritable(self, reason: str) -> UmbelError:
        return UmbelError(
            f"cannot be written ({reason})", where=str(self.path), fix="set run.dir to another folder"
        )


def _share_with_group(folder: Path) -> None:
    """Let every member of the group ask the run to stop."""
    mode = folder.stat().st_mode
    wanted = mode | stat.S_IWGRP | stat.S_IXGRP | stat.S_IRGRP | stat.S_ISGID
    if mode == wanted or folder.stat().st_uid != os.geteuid():
        return
    try:
        folder.chmod(wanted)
    except OSError:
        return  # some network file systems know no modes; the owner can still stop the run
