"""The batch script of a run, made by submitit: options, set-up, and one command that a human can repeat."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from configs.schema import Slurm
from launch.environment import cluster_variables
from launch.slurm.request import Request
from launch.slurm.site import takes_devices
from launch.slurm.worker import command

LOG = "slurm-%j.log"
"""What the batch script itself prints, in the run's logs/; Slurm puts the job's number in."""


def script(request: Request) -> str:
    """The very text that sbatch gets. Needs no Slurm on this machine."""
    from launch.slurm.executor import CommandExecutor

    return CommandExecutor(request.folder / "job").text(
        command(request),
        job_name=request.name,
        time=request.cluster.slurm.time,
        nodes=request.nodes,
        **_tasks(request),
        **_of_site(request.cluster.slurm),
        signal_delay_s=request.grace,
        setup=_setup(request),
        additional_parameters=_options(request),
        stderr_to_stdout=True,
        use_srun=False,
        wckey=None,
    )


def _tasks(request: Request) -> dict[str, Any]:
    """How a node is filled: one task per process, or one torchrun that starts them all."""
    processes = request.processes_per_node
    alone = request.cluster.slurm.tasks == "per_node"
    cpus, memory = request.cpus, request.memory
    return {
        "ntasks_per_node": 1 if alone else processes,
        "cpus_per_task": cpus * processes if cpus and alone else cpus,
        "mem": f"{memory * processes}M" if memory else None,
        "gres": f"{request.cluster.slurm.gres}:{processes}" if takes_devices(request.cluster) else None,
    }


def _of_site(slurm: Slurm) -> dict[str, str | None]:
    return {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "exclude": ",".join(slurm.exclude) or None,
    }


def _options(request: Request) -> dict[str, Any]:
    """What submitit has no parameter for."""
    slurm, log = request.cluster.slurm, request.folder / "logs"
    ours: dict[str, Any] = {
        "requeue": True,
        # In a file's name Slurm reads % as the beginning of a symbol.
        "output": f"{str(log).replace('%', '%%')}/{LOG}",
        "open-mode": "append",
    }
    if request.cluster.spare_nodes:
        ours["no-kill"] = True
    if slurm.reservation:
        ours["reservation"] = slurm.reservation
    if slurm.chain == "array":
        ours["array"] = f"1-{slurm.jobs}%1"
    return ours | {name: value for name, value in slurm.options.items() if value is not False}


def _setup(request: Request) -> list[str]:
    """Shell lines before the command: the profile's, then what every run has."""
    cluster, lines = request.cluster, []
    if cluster.modules:
        lines += [
            "command -v module > /dev/null || source /etc/profile",
            f"module load {shlex.join(cluster.modules)} || exit",
        ]
    lines += cluster.setup
    if cluster.cache:
        # The token stays the user's own: the cache is shared.
        lines.append('export HF_TOKEN_PATH="${HF_TOKEN_PATH:-${HF_HOME:-$HOME/.cache/huggingface}/token}"')
    return [*lines, *_exports(request)]


def _exports(request: Request) -> list[str]:
    cpus, alone = request.cpus, request.cluster.slurm.tasks == "per_node"
    lines = [f"export PYTHONPATH={_quoted(request.code)}${{PYTHONPATH:+:$PYTHONPATH}}"]
    fixed = {"PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"}
    if cpus:
        # srun of Slurm 22.05 and later does not take it from sbatch.
        fixed["SRUN_CPUS_PER_TASK"] = str(cpus * request.processes_per_node if alone else cpus)
    fixed["OMP_NUM_THREADS"] = str(cpus or 1)
    variables = fixed | cluster_variables(request.cluster)
    return lines + [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
