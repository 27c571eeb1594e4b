"""What the bytes of a tensor say, as numpy numbers; numpy itself knows neither bf16 nor fp8."""

from __future__ import annotations

import numpy as np

# Where a float's exponent stands. All of its bits set: not a finite number (IEEE 754; of E4M3 only NaN is so,
# by all bits but the sign, https://arxiv.org/abs/2209.05433).
_NOT_FINITE = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}
_NUMPY = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


def as_float64(raw: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers in ``raw`` (uint8, whole elements, little-endian), one for each element."""
    if dtype == "F8_E4M3":
        return _E4M3[raw]
    if dtype == "BF16":
        numbers = (raw.view("<u2").astype("<u4") << 16).view("<f4")
    elif dtype == "F8_E5M2":
        numbers = (raw.astype("<u2") << 8).view("<f2")
    else:
        numbers = raw.view(_NUMPY[dtype])
    with np.errstate(invalid="ignore"):  # a signalling NaN is data here
        return numbers.astype(np.float64)


def first_not_finite(raw: np.ndarray, dtype: str) -> int | None:
    """Index of the first element that is NaN or infinite; None where there is none, or of no float dtype."""
    if dtype not in _NOT_FINITE:
        return None
    view, exponent = _NOT_FINITE[dtype]
    bad = (raw.view(view) & exponent) == exponent
    return int(bad.argmax()) if bad.any() else None


def _e4m3() -> np.ndarray:
    """The value of each of the 256 bytes."""
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 15, (bits & 7) / 8
    size = np.where(exponent, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)
    size[(bits & 127) == 127] = np.nan
    return np.where(bits >> 7, -size, size)


_E4M3 = _e4m3()
