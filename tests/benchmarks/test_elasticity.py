"""The outside measure runs, sees no difference in Umbel, and goes on without the peers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_outside_measure_runs_without_any_peer() -> None:
    script = [sys.executable, "benchmarks/elasticity.py", "--tests", "resume"]
    command = [*script, "--tools", "umbel streaming", "mosaic"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| umbel streaming | same |" in done.stdout
    assert "| mosaic | same |" in done.stdout or "peers/README.md" in done.stderr
