"""Where figures come from: results/<name>.json, each with its date and hardware."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from base.files import human_bytes, write_json

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": human_bytes(psutil.virtual_memory().total),
        "python": platform.python_version(),
    }
    import torch

    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def write_result(name: str, result: dict[str, Any]) -> None:
    path = RESULTS / f"{name}.json"
    write_json(path, {"date": datetime.now(UTC).date().isoformat(), **result})
    print(f"written to benchmarks/results/{path.name}")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
