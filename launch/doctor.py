"""What this machine has and lacks for training. Imports no torch; no secret is part of the report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from base.devices import cuda_devices
from base.files import human_bytes

Level = Literal["ok", "note", "bad"]

PACKAGES = (
    "torch",
    "deepspeed",
    "accelerate",
    "transformers",
    "tokenizers",
    "datasets",
    "huggingface_hub",
    "peft",
)
LOW_DISK, LOW_SHM = 10 << 30, 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``bad`` stops training, ``note`` limits it."""

    name: str
    level: Level
    text: str


def examine(runs: Path) -> list[Finding]:
    """Every finding, in the order of the report."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions, _devices, _compiler, _slurm, _tokens, lambda: _disk(runs), _memory,
    )  # fmt: skip
    return [finding for part in parts for finding in part()]


def _versions() -> Iterator[Finding]:
    yield Finding("umbel", "ok", metadata.version("umbel"))
    yield Finding("python", "ok", platform.python_version())
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "bad", "is not installed; pip install -e .")


def _devices() -> Iterator[Finding]:
    devices = cuda_devices()
    for index, device in enumerate(devices):
        memory = f"{human_bytes(device.free)} of {human_bytes(device.memory)} free"
        yield Finding(f"device {index}", "ok", f"{device.name}, {memory}")
    if not devices:
        yield Finding("devices", "note", "no CUDA device: training runs on the CPU, for small models")


def _compiler() -> Iterator[Finding]:
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if found:
        yield Finding("C++ compiler", "ok", found)
    else:
        yield Finding("C++ compiler", "note", "none: no model.compile and no optimizer offload")
    if cuda_devices():
        nvcc = shutil.which("nvcc")
        yield Finding("CUDA compiler", "ok" if nvcc else "note", nvcc or "none: no DeepSpeed CUDA kernels")


def _slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("Slurm", "note", "not on this machine")
        return
    try:
        done = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, timeout=10)
        answer = done.stdout.strip() or "does not answer"
    except (OSError, subprocess.TimeoutExpired):
        answer = "does not answer"
    yield Finding("Slurm", "note" if "not answer" in answer else "ok", answer)


def _tokens() -> Iterator[Finding]:
    hub = os.environ.get("HF_TOKEN") or _hub_token_file().is_file()
    yield Finding(
        "hub token", "ok" if hub else "note", "present" if hub else "none: only public models; hf auth login"
    )
    wandb = os.environ.get("WANDB_API_KEY") or "wandb" in _netrc()
    yield Finding(
        "wandb key", "ok" if wandb else "note", "present" if wandb else "none: tracker=wandb runs offline"
    )


def _hub_token_file() -> Path:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token")


def _netrc() -> str:
    try:
        return Path(os.environ.get("NETRC") or Path.home() / ".netrc").read_text()
    except OSError:
        return ""


def _disk(runs: Path) -> Iterator[Finding]:
    cache = Path(os.environ.get("UMBEL_CACHE") or Path.home() / ".cache" / "umbel")
    for name, folder, least in (("disk: runs", runs, LOW_DISK), ("disk: cache", cache, LOW_DISK)):
        place = _existing(folder)
        free = shutil.disk_usage(place).free
        writable = os.access(place, os.W_OK)
        level: Level = "bad" if not writable else "ok" if free >= least else "note"
        yield Finding(name, level, f"{human_bytes(free)} free" if writable else f"{place} cannot be written")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        text = f"{human_bytes(free)} free" + ("" if free >= LOW_SHM else ": several processes may need more")
        yield Finding("shared memory", "ok" if free >= LOW_SHM else "note", text)


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{human_bytes(memory.available)} of {human_bytes(memory.total)} free")
    yield Finding("cores", "ok", str(len(os.sched_getaffinity(0))))
