"""sbatch: to ask whether a script would be taken, and to hand it in."""

from __future__ import annotations

import os
import re
from pathlib import Path

from configs.schema import Slurm
from launch.slurm.ask import callers_variables, run

_TRY_SECONDS = 120.0
"""A controller with a long queue works it through before it says when a job could start."""

_OF_A_WORLD = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
"""Variables that place a process in a world: a job inherits the shell's, where they say nothing of it."""

_DEFAULTS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_TIMELIMIT": "time",
}
"""A site's defaults for its users. They win over a script, so they hold only where it says nothing."""


def try_out(text: str, slurm: Slurm) -> float | None:
    """Have Slurm look at a script as if it were submitted; when the job would start (Unix time), if it says.

    Raises:
        UmbelError: it would be refused; says why in Slurm's own words.
    """
    variables = {**_variables(slurm), "SLURM_TIME_FORMAT": "%s"}
    done = run("sbatch", "--test-only", variables=variables, stdin=text, seconds=_TRY_SECONDS)
    said = re.search(r"to start at (\d+)", done.stdout + done.stderr)
    return float(said[1]) if said else None


def submit_script(script: Path, slurm: Slurm, after: str | None = None) -> str:
    """Submit; returns the job's id. ``after``: a job that must have ended, in whatever way, before it starts.

    Raises:
        UmbelError: Slurm refuses; says why in its own words.
    """
    order = [f"--dependency=afterany:{after}"] if after else []
    done = run("sbatch", "--parsable", *order, str(script), variables=_variables(slurm))
    return done.stdout.strip().splitlines()[-1].split(";")[0]


def _variables(slurm: Slurm) -> dict[str, str]:
    """What the job inherits: the caller's environment, without its place in another job."""
    callers = {name: value for name, value in callers_variables().items() if not _OF_A_WORLD.fullmatch(name)}
    defaults = {
        name: os.environ[name]
        for name, key in _DEFAULTS.items()
        if name in os.environ and getattr(slurm, key) is None
    }
    return callers | defaults
