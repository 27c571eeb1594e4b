"""Nodes for a look at them: an allocation with what a run of this config would ask for, of minutes."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace

from base.errors import UmbelError
from configs.schema import RunConfig
from launch.processes import HOME
from launch.slurm.ask import require_slurm
from launch.slurm.checks import check_site
from launch.slurm.request import request
from launch.slurm.script import script
from launch.slurm.site import processes_per_node, site

MINUTES = 10

_OF_A_BATCH = (
    "array", "error", "export", "input", "job-name", "mail-type", "mail-user", "open-mode", "output",
    "requeue", "signal", "time",
)  # fmt: skip
"""Options that an allocation does not know, or should not have."""

_SETUP = re.compile(r"^# setup\n(.*?)^# command\n", re.MULTILINE | re.DOTALL)


def run_in_allocation(config: RunConfig, command: Sequence[str]) -> int:
    """Run a command here, with the nodes of a run allocated; returns its exit code. Waits in the queue.

    Raises:
        UmbelError: there is no Slurm here, or the site cannot give what is asked for.
    """
    require_slurm()
    config = replace(config, parallelism=replace(config.parallelism, processes=None))  # whole nodes
    known = site(config.cluster)
    processes = processes_per_node(config, known)
    share = None
    if known is not None:
        check_site(config.cluster, processes, known)
        share = known.share(config.cluster, processes)
    text = script(request(config, processes_per_node=processes, share=share, grace=0, code=HOME))
    try:
        return subprocess.run(allocation(text, command)).returncode
    except OSError as error:
        raise UmbelError(f"cannot be run ({error.strerror})", where="salloc") from error


def allocation(text: str, command: Sequence[str]) -> list[str]:
    """salloc with the options and the set-up lines of a batch script."""
    options = [
        word for line in re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE) for word in shlex.split(line)
    ]
    kept = [option for option in options if option.lstrip("-").split("=")[0] not in _OF_A_BATCH]
    setup = match[1] if (match := _SETUP.search(text)) else ""
    named = ["--job-name=preflight", f"--time={MINUTES}"]
    return ["salloc", *kept, *named, "bash", "-c", f"{setup}exec {shlex.join(command)}"]
