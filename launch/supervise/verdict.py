"""What failed first, from what torchrun, srun and the workers themselves say of it."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

from launch.supervise.detect.spikes import is_nan

WORDS = 20
"""Lines of a rank's own that are shown, where it said nothing better."""

_TORCHRUN = re.compile(
    r"^[EWI]\d{4} .*torch/distributed/elastic/multiprocessing/api.py.* failed ", re.MULTILINE
)
_ROOT_CAUSE = re.compile(
    r"Root Cause.*?host[ \t]*:[ \t]*(?P<node>[^\s.]*).*?rank\s*:\s*(?P<rank>\d+)"
    r".*?exitcode\s*:\s*(?P<code>-?\d+)",
    re.DOTALL,
)
_SRUN_NODE = re.compile(r"^srun: error: Node failure on (?P<node>\S+)", re.MULTILINE)
_SRUN_TASK = re.compile(
    r"^srun: error: (?P<node>\S+): tasks? (?P<rank>\d+)[-,\d]*: (?P<what>.+)$", re.MULTILINE
)
_EXITED = re.compile(r"Exited with exit code (\d+)")
_OUT_OF_MEMORY = re.compile(r"Out Of Memory", re.IGNORECASE)
_SIGNAL_NAMES = {signal.strsignal(number): number for number in signal.valid_signals()}

_DEVICE = re.compile(r"uncorrectable|\bECC\b|\bXid\b|NVLink|CUDA error|CUDNN_STATUS", re.IGNORECASE)
"""Errors that say more of a device than of the code that runs on it."""


class Failure(NamedTuple):
    """The first failure of a start.

    Attributes:
        rank: None for what started the workers, or a whole node.
        cause: ``raised``, ``killed``, ``device``, ``node``, ``nan``, or the kind of a detector's finding.
        final: whether it would only happen again: Umbel itself found it, in the run and not in a machine.
        words: what the process printed last, where no event tells its error.
    """

    rank: int | None
    node: str | None
    error: str
    exit_code: int = 1
    cause: str = "raised"
    final: bool = False
    words: str = ""

    def __str__(self) -> str:
        """``rank 3 on node2: was killed by SIGKILL``, as far as it is known."""
        rank = "" if self.rank is None else f"rank {self.rank}"
        who = " on ".join(part for part in (rank, self.node if rank else "") if part)
        return f"{who}: {self.error}" if who else self.error


class _End(NamedTuple):
    """How a launcher says that a rank ended: ``status`` is its exit code, or minus a signal."""

    rank: int | None
    node: str | None
    status: int
    memory: bool = False


def first_failure(code: int, output: str, told: Sequence[dict[str, Any]], alone: bool) -> Failure:
    """What failed first.

    Args:
        code: exit code of what started the workers; minus a signal that killed it.
        output: what it and they printed.
        told: the start's ``failed`` events, oldest first.
        alone: whether it is the only worker itself.
    """
    if lost := _SRUN_NODE.search(output):
        return lost_node(lost["node"])
    end = _first_end(output) or _End(0 if alone else None, None, code)
    if end.status < 0:
        return Failure(end.rank, end.node, _died_of(end), cause="killed")
    if told:
        return _told(told[0], end)
    error = f"ended with exit code {end.status}" if end.status else "ended without a word"
    return Failure(end.rank, end.node, error, _exit_code(end.status), words=own_words(output))


def lost_node(node: str) -> Failure:
    """Of a node that is gone, with all that worked there."""
    return Failure(None, node, f"node {node} was lost", cause="node")


def own_words(output: str) -> str:
    """The workers' last lines, without the report that torchrun puts below them."""
    return "\n".join(_TORCHRUN.split(output, maxsplit=1)[0].rstrip().splitlines()[-WORDS:])


def _first_end(output: str) -> _End | None:
    if found := _ROOT_CAUSE.search(output):
        return _End(int(found["rank"]), found["node"] or None, int(found["code"]))
    if found := _SRUN_TASK.search(output):
        return _End(int(found["rank"]), found["node"], _status(found["what"]), _is_memory(found["what"]))
    return None


def _status(what: str) -> int:
    """An exit code, or minus a signal, from srun's words."""
    if match := _EXITED.search(what):
        return int(match[1])
    if _is_memory(what):
        return -signal.SIGKILL
    return -_SIGNAL_NAMES.get(re.sub(r" \(core dumped\)$", "", what.strip()), 0) or 1


def _is_memory(what: str) -> bool:
    return _OUT_OF_MEMORY.search(what) is not None


def _told(event: dict[str, Any], end: _End) -> Failure:
    error, rank = event["error"], event["rank"]
    node = event.get("node") or (end.node if end.rank == rank else None)
    kind = "nan" if is_nan(event) else "device" if _DEVICE.search(error) else "raised"
    return Failure(rank, node, error, event.get("exit_code") or 1, kind, bool(event.get("final")))


def _exit_code(status: int) -> int:
    """2 stays: what is wrong with the command line or the config is bad input, whoever finds it."""
    return 2 if status == 2 else 1


def _died_of(end: _End) -> str:
    number = -end.status
    if end.memory:
        return "ran out of the memory that the job has there, and was killed"
    hint = " (the kernel does so when memory runs out)" if number == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(number).name}{hint}"
