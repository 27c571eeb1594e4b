"""Jobs and outcomes on their way between two processes: one line of JSON each."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoint.job import Commit, Outcome, SaveJob, Slot
from checkpoint.retention import Retention


def encode_job(job: SaveJob) -> bytes:
    """Raises TypeError: a fact that JSON does not know."""
    plain = {name: getattr(job, name) for name in SaveJob.__dataclass_fields__}
    plain["checkpoints"] = str(job.checkpoints)
    plain["commit"] = job.commit and asdict(job.commit)
    return _line(plain)


def decode_job(line: bytes) -> SaveJob:
    plain = json.loads(line)
    plain["checkpoints"] = Path(plain["checkpoints"])
    plain["slots"] = [
        Slot(parameter, kind, start, dtype, tuple(shape), offset)
        for parameter, kind, start, dtype, shape, offset in plain["slots"]
    ]
    plain["commit"] = plain["commit"] and _commit(plain["commit"])
    return SaveJob(**plain)


def encode_outcome(outcome: Outcome) -> bytes:
    return _line(outcome._asdict())


def decode_outcome(line: bytes) -> Outcome:
    plain = json.loads(line)
    return Outcome(**plain | {"deleted": tuple(plain["deleted"])})


def _commit(plain: dict[str, Any]) -> Commit:
    retention = plain["retention"]
    retention["scores"] = {int(step): score for step, score in retention["scores"].items()}
    return Commit(facts=plain["facts"], retention=Retention(**retention))


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
