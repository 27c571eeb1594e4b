"""Taking the stacks of a node's ranks while they are stuck, even in C: by py-spy, or by their own signal."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from base.files import write_json
from launch.supervise.stacks import GONE, rank_file
from record.heartbeats import STACK_SIGNAL, Beat, stack_file

PY_SPY_SECONDS = 8.0
ANSWER_SECONDS = 4.0
"""How long a tool, or a process that gets the signal, may take."""

_SETTLED = 0.2
_RECORDER = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
"""Environment: beginning of the names to which NCCL's flight recorder writes, the rank added."""


def take_stacks(beats: Sequence[Beat], node: str, beats_folder: Path, place: Path) -> None:
    """Leave in ``place`` a file for each rank that could be seen, then ``<node>.json`` with how each was."""
    place.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=8) as pool:
        told = dict(pool.map(partial(_take, node, beats_folder, place), beats))
    _copy_flight_recorder(beats, place)
    write_json(place / f"{node}.json", told)


def _take(node: str, beats_folder: Path, place: Path, beat: Beat) -> tuple[str, str]:
    state = _state(beat.pid)
    if state is None:
        return str(beat.rank), GONE
    for means, take in (("py-spy", _py_spy), ("signal", _signal)):
        if text := take(beat, beats_folder):
            age = max(0, time.time() - beat.since)
            header = f"rank {beat.rank} on {node}, process {beat.pid} ({state}), by {means}\n"
            header += f"step {beat.step}, {beat.phase} for {age:.0f} s\n\n"
            rank_file(place, beat.rank).write_text(header + text)
            return str(beat.rank), means
    return str(beat.rank), f"answers no signal ({state})"


def _py_spy(beat: Beat, _: Path) -> str:
    """Empty where py-spy is missing, may not look, or does not end."""
    if (program := _program()) is None:
        return ""
    command = [program, "dump", "--full-filenames", "--pid", str(beat.pid)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PY_SPY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def _program() -> str | None:
    """py-spy, of this environment or any other."""
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")


def _signal(beat: Beat, beats_folder: Path) -> str:
    """What the process itself writes; empty where it does not catch the signal, or does not answer."""
    if not _catches(beat.pid):
        return ""  # it would die of it
    file = stack_file(beats_folder, beat.rank)
    with contextlib.suppress(OSError):
        before = file.stat().st_size
        os.kill(beat.pid, STACK_SIGNAL)
        size = _settled(file, before)
        with open(file, "rb") as dump:
            dump.seek(before)
            return dump.read(size - before).decode(errors="replace")
    return ""


def _settled(file: Path, before: int) -> int:
    """The size to which a file has grown once it grows no more."""
    deadline, size, since = time.monotonic() + ANSWER_SECONDS, before, time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(0.02)
        now = file.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif size > before and time.monotonic() - since > _SETTLED:
            break
    return size


def _catches(pid: int) -> bool:
    """Whether a process has a handler for the signal: not before it said so, and not if it is another one."""
    mask = _status(pid, "SigCgt")
    return mask is not None and bool(int(mask, 16) >> (STACK_SIGNAL - 1) & 1)


def _state(pid: int) -> str | None:
    """As ``sleeping``, and for one that hangs in the kernel where; None for a process that is gone."""
    state = _status(pid, "State")
    if state is None or state[0] in "ZX":
        return None
    words = state.partition("(")[2].rstrip(")") or state
    if state[0] == "D":
        with contextlib.suppress(OSError):
            words += f" in {Path(f'/proc/{pid}/wchan').read_text().strip() or 'the kernel'}"
    return words


def _status(pid: int, key: str) -> str | None:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/status").read_text()
        if found := re.search(rf"^{key}:\s*(.+)$", text, re.MULTILINE):
            return found[1]
    return None


def _copy_flight_recorder(beats: Sequence[Beat], place: Path) -> None:
    """What NCCL's flight recorder has left of the last collectives, as it is."""
    for name in _RECORDER:
        for beat in beats if name in os.environ else ():
            with contextlib.suppress(OSError):
                shutil.copyfile(f"{os.environ[name]}{beat.rank}", place / f"nccl-{beat.rank:05d}")
