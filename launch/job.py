"""What an attempt was started with: config, command line, code state, installed packages."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from importlib import metadata
from typing import Any

from base.files import write_json, write_text
from base.secrets import redact
from configs.compose import save
from configs.schema import RunConfig
from launch.processes import HOME
from record.events import utc_now
from record.folder import RunFolder

_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NCCL_", "OMP_NUM_THREADS", "SLURM_", "TORCH_", "UMBEL_")


def freeze(folder: RunFolder, config: RunConfig, attempt: int, command: list[str], world_size: int) -> None:
    """Write ``run.yaml`` and, for this attempt, ``job/attempt-0001/``; secrets are redacted."""
    job = folder.attempt_job(attempt)
    code, diff = code_state()
    write_json(
        job / "job.json",
        {
            "time": utc_now(),
            "command": shlex.join(map(redact, command)),
            "world_size": world_size,
            "host": platform.node(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "variables": variables(),
            "modules": loaded_modules(),
            "driver": driver_version(),
            "code": code,
        },
    )
    if diff:
        write_text(job / "code.diff", redact(diff))
    write_text(job / "packages.txt", "\n".join(packages()) + "\n")
    save(config, job / "run.yaml")
    save(config, folder.run_yaml)


def code_state() -> tuple[dict[str, Any], str]:
    """Version and, in a git checkout, commit and the diff of what is not committed."""
    code: dict[str, Any] = {"version": metadata.version("umbel")}
    # Installed into somebody else's checkout, we are not tracked there, and their commit says nothing of us.
    if _git("ls-files", "--error-unmatch", "umbel.py") is None:
        return code, ""
    commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
    code |= {"commit": (commit or "").strip() or None, "uncommitted": bool(diff)}
    return code, diff or ""


def packages() -> list[str]:
    """``name==version`` of every installed distribution, sorted."""
    found = {dist.name.lower(): dist.version for dist in metadata.distributions() if dist.name}
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def variables() -> dict[str, str]:
    """The environment variables that steer a run; redacted."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    return {name: redact(value) for name, value in sorted(chosen.items())}


def loaded_modules() -> list[str]:
    """What ``module list`` shows, as Lmod and Environment Modules leave it in the environment."""
    return [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name]


def driver_version() -> str | None:
    """Of NVIDIA's driver on this machine; None without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None
    return version.decode() if isinstance(version, bytes) else str(version)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(HOME), *arguments], capture_output=True, text=True, timeout=20, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
