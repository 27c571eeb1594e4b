"""One way to run a Slurm command: text out, or Slurm's own words as an error."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator

from base.errors import UmbelError

SECONDS = 60.0
"""A busy controller may take its time; one that is gone must not hold a terminal."""

_OWN = re.compile(r"(SLURM|SBATCH|SQUEUE|SINFO|SACCT|SCONTROL|SRUN|SALLOC)_.*")
"""Variables that change what the commands print or submit. A shell inside a job has dozens, of that job."""

_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


def has_slurm() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def require_slurm() -> None:
    """Raises:
    UmbelError: this machine has no Slurm; says what is missing.
    """
    if not has_slurm():
        raise UmbelError(
            "no Slurm here: there is no sbatch in PATH",
            where="cluster.launcher=slurm",
            fix="go to a login node of the cluster, or start here with cluster=local",
        )


def ask(*command: str, seconds: float = SECONDS) -> str:
    """What a Slurm command prints, in plain English; times in it are Unix seconds.

    Raises:
        UmbelError: it is not there, fails (says Slurm's own words), or does not answer in time.
    """
    variables = {**callers_variables(), "LC_ALL": "C.UTF-8", "SLURM_TIME_FORMAT": "%s"}
    return run(*command, variables=variables, seconds=seconds).stdout


def run(
    *command: str, variables: dict[str, str], stdin: str = "", seconds: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command in exactly this environment.

    Raises:
        UmbelError: as `ask` does.
    """
    name = command[0]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=variables,
        )
    except FileNotFoundError as error:
        raise UmbelError(f"no Slurm here: there is no {name} in PATH", where="Slurm") from error
    except OSError as error:
        raise UmbelError(f"cannot be run ({error.strerror})", where=name) from error
    except subprocess.TimeoutExpired as error:
        raise UmbelError(
            f"did not answer in {seconds:.0f} s", where=name, fix="look with sinfo whether Slurm is up"
        ) from error
    if done.returncode != 0:
        raise UmbelError(words(done.stderr) or f"ended with exit code {done.returncode}", where=name)
    return done


def callers_variables() -> dict[str, str]:
    """The caller's environment without what steers Slurm's commands."""
    return {name: value for name, value in os.environ.items() if name in _KEPT or not _OWN.fullmatch(name)}


def words(stderr: str) -> str:
    """Slurm's message in one line: without the command's name, which the error names already."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip() for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines)))


def accounting(*command: str) -> str:
    """What accounting says; nothing where the site keeps no accounts.

    Raises:
        UmbelError: it does not answer, or refuses.
    """
    try:
        return ask(*command)
    except UmbelError as error:
        if re.search(r"accounting_storage|accounting storage|no Slurm here", str(error)):
            return ""
        raise


def rows(text: str, width: int) -> Iterator[list[str]]:
    """Lines of ``|``-separated fields; the last one may hold any text."""
    for line in text.splitlines():
        row = [field.strip() for field in line.split("|", width - 1)]
        if len(row) == width:
            yield row
