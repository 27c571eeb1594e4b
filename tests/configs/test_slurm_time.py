from __future__ import annotations

import math

import pytest

from configs.slurm_time import slurm_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800), ("1:30", 90), ("20:00:00", 72000), ("1-0", 86400), ("4-04", 360000),
        ("1-2:03", 93780), ("1-02:03:04", 93784), ("0", 0),
        ("UNLIMITED", math.inf), ("infinite", math.inf),
        ("", None), ("20h", None), ("-1", None), ("1:2:3:4", None), ("n/a", None), ("NONE", None),
    ],
)  # fmt: skip
def test_times_as_slurm_reads_them(text: str, seconds: float | None) -> None:
    assert slurm_seconds(text) == seconds
