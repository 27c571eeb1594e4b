"""submitit's Slurm executor with a command of our own in place of a pickled function. Import it late."""

from __future__ import annotations

from typing import Any

from submitit.slurm.slurm import SlurmExecutor


class CommandExecutor(SlurmExecutor):
    """Makes submission texts, also where there is no Slurm. Submits nothing by itself, writes no pickle."""

    @classmethod
    def affinity(cls) -> int:
        """submitit refuses to exist without srun; a text needs none."""
        return 2

    def text(self, command: str, **parameters: Any) -> str:
        """The batch script that runs ``command``, with submitit's parameters (``nodes``, ``gres``, …)."""
        self.update_parameters(**parameters)
        return self._make_submission_file_text(command, "")
