from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.numbers import as_float64, first_not_finite

TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I64": torch.int64,
    "BOOL": torch.uint8,
}


@pytest.mark.parametrize("dtype", TORCH)
@given(data=st.binary(min_size=8, max_size=64).map(lambda raw: raw[: len(raw) // 8 * 8]))
def test_numbers_are_those_that_torch_reads_from_the_same_bytes(dtype: str, data: bytes) -> None:
    expected = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(TORCH[dtype]).double().numpy()
    raw = np.frombuffer(data, np.uint8)
    got = as_float64(raw, dtype)
    np.testing.assert_array_equal(got, expected)
    odd = np.flatnonzero(~np.isfinite(expected))
    assert first_not_finite(raw, dtype) == (odd[0] if odd.size else None)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_every_fp8_number(dtype: str) -> None:
    raw = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(raw.copy()).view(TORCH[dtype]).double().numpy()
    np.testing.assert_array_equal(as_float64(raw, dtype), expected)
