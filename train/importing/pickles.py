"""What pickles hold, as a child process that can do nothing else tells it (`train.importing.sandbox`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from base.errors import UmbelError
from checkpoint.format import MAX_MANIFEST, Damaged
from checkpoint.strict import parse_json, read_plain
from train.importing.stored import Stored, tensors_of

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LANG", "LC_ALL")
"""The child's whole environment: no token is among these."""

REFUSED = 3


class Unpickled(NamedTuple):
    """What one file held: plain ``facts``, and its tensors, to which they refer."""

    path: Path
    facts: dict[str, Any]
    tensors: dict[str, Stored]

    def tensor(self, reference: Any) -> Stored:
        """The tensor that a fact refers to.

        Raises:
            Damaged: it refers to none.
        """
        number = reference.get("$tensor") if isinstance(reference, dict) else None
        if str(number) not in self.tensors:
            raise Damaged("has something else where a tensor must be", where=str(self.path))
        return self.tensors[str(number)]


class Opened(NamedTuple):
    """The files, in the order asked for, and what the child could give up: network, writing elsewhere."""

    files: list[Unpickled]
    confined: dict[str, bool]


def unpickle(files: Sequence[Path], out: Path) -> Opened:
    """Have pickles opened, one after another, and left as safetensors and JSON in the empty ``out``.

    Raises:
        UmbelError: a file asks for code, is damaged, or too large for this machine; nothing of it was run.
    """
    job = json.dumps({"files": [str(file.resolve()) for file in files], "out": str(out.resolve())})
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "train.importing.sandbox"],
        input=job.encode(),
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(out)},
        capture_output=True,
        check=False,
    )
    if ended.returncode not in (0, REFUSED):
        last = (ended.stderr.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        raise UmbelError(
            f"the process that opens its pickles ended with {ended.returncode} ({last[:200]})",
            where=str(files[0].parent),
            fix="check memory and disk space",
        )
    report = _json(out / "report.json")
    if "error" in report:
        raise UmbelError(str(report["error"]), where=str(report["file"]))
    opened = [
        Unpickled(file, _json(out / f"{number}.json"), tensors_of(out / f"{number}.safetensors"))
        for number, file in enumerate(files)
    ]
    return Opened(opened, {str(name): bool(done) for name, done in report["confined"].items()})


def _json(path: Path) -> dict[str, Any]:
    value = parse_json(read_plain(path, MAX_MANIFEST), str(path))
    if not isinstance(value, dict):
        raise Damaged("is not the object a checkpoint is", where=str(path))
    return value
