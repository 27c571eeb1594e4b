"""The safetensors container: a streaming writer that hashes, and a header parser that trusts nothing.

Source: https://github.com/huggingface/safetensors (8 bytes of little-endian header length, a JSON header,
the tensors' bytes without holes).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from checkpoint.format import DTYPE_BYTES, MAX_DIMENSIONS, MAX_HEADER, Damaged
from checkpoint.stream import HashedFile
from checkpoint.strict import is_count, is_counts, parse_json, plain_size

METADATA = "__metadata__"
ALIGNMENT = 8

Bytes = bytes | bytearray | memoryview | np.ndarray


class Tensor(NamedTuple):
    """One tensor to write. ``data``: its bytes, C order, little-endian, or a function that gives them."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    data: Bytes | Callable[[], Bytes]


class Entry(NamedTuple):
    """One tensor in a file: bytes [begin, end) counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a file's header says: its metadata, and where each tensor's bytes lie."""

    metadata: dict[str, str]
    entries: dict[str, Entry]


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    return DTYPE_BYTES[dtype] * math.prod(shape)


def write_file(path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> tuple[int, str]:
    """Stream tensors into a new file in the order given, fsync it; return (size, sha256).

    Holds no more than one tensor's bytes. Give tensors by falling dtype size, or they lie unaligned.

    Raises:
        ValueError: a tensor's bytes are not dtype times shape, or the header could not be read back.
        OSError: the disk says no.
    """
    header = encode_header(tensors, metadata)
    size = len(header) + sum(tensor_bytes(tensor.dtype, tensor.shape) for tensor in tensors)
    parse_header(header[8:], size, path.name)
    with HashedFile(path) as file:
        file.write(memoryview(header))
        for tensor in tensors:
            file.write(flat_bytes(tensor))
    return size, file.sha256


def flat_bytes(tensor: Tensor) -> memoryview:
    """The bytes of one tensor.

    Raises:
        ValueError: not contiguous, or not as many as dtype and shape ask for.
    """
    data = tensor.data() if callable(tensor.data) else tensor.data
    view = data.data if isinstance(data, np.ndarray) else memoryview(data)
    needed = tensor_bytes(tensor.dtype, tensor.shape)
    if view.nbytes != needed or not view.c_contiguous:
        raise ValueError(f"'{tensor.key}': {view.nbytes} bytes given, {needed} contiguous bytes needed")
    return view.cast("B") if needed else memoryview(b"")


def encode_header(tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON header, padded with spaces so that the tensors start at a multiple of 8."""
    header: dict[str, Any] = {METADATA: dict(metadata)}
    begin = 0
    for tensor in tensors:
        end = begin + tensor_bytes(tensor.dtype, tensor.shape)
        header[tensor.key] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]
        }  # fmt: skip
        begin = end
    if len(header) != len(tensors) + 1:
        raise ValueError("a tensor key occurs twice in one file")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def read_header(file: BufferedReader, where: str) -> Header:
    """Header of an open file, checked against the file's size before anything large is read.

    Raises:
        Damaged: the file is not a safetensors file in every respect.
    """
    size = plain_size(file)
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise _no_safetensors(start, where)
    return parse_header(file.read(length), size, where)


def parse_header(raw: bytes, file_size: int, where: str) -> Header:
    """Check and decode the JSON header of a file of ``file_size`` bytes.

    Raises:
        Damaged: unknown fields or dtypes, bytes that are not dtype times shape, holes, overlaps, or data
            that ends before or after the file does.
    """
    if len(raw) > MAX_HEADER:
        raise Damaged(f"has a header of {len(raw)} bytes, the limit is {MAX_HEADER}", where=where)
    header = parse_json(raw, where) if raw[:1] == b"{" else None
    if not isinstance(header, dict):
        raise Damaged("is not a safetensors file (no JSON object in its header)", where=where)
    metadata = _metadata(header.pop(METADATA, {}), where)
    data_start = 8 + len(raw)
    entries = {key: _entry(key, value, data_start, where) for key, value in header.items()}
    _check_contiguous(entries, data_start, file_size, where)
    return Header(metadata, entries)


def _no_safetensors(start: bytes, where: str) -> Damaged:
    """Say what it looks like. Only a guess: a real header of 640 bytes starts like a pickle, too."""
    if start[:2] in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"} or start[:4] == b"PK\x03\x04":
        fix = "pickles run code, none is ever loaded"
        return Damaged("is a pickle, not a safetensors file", where=where, fix=fix)
    return Damaged("is not a safetensors file (its header length is impossible)", where=where)


def _metadata(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise Damaged(f"has a {METADATA} that is not text by name", where=where)
    return value


def _entry(key: str, value: Any, data_start: int, where: str) -> Entry:
    def refuse(reason: str) -> NoReturn:
        raise Damaged(f"tensor {key[:80]!r} {reason}", where=where)

    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        refuse("needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        refuse("has an unknown dtype")
    if not is_counts(shape) or len(shape) > MAX_DIMENSIONS:
        refuse("has an impossible shape")
    if not is_counts(offsets) or len(offsets) != 2:
        refuse("has impossible offsets")
    begin, end = offsets
    if end - begin != tensor_bytes(dtype, shape) or not is_count(end):
        refuse(f"spans {end - begin} bytes, its dtype and shape need {tensor_bytes(dtype, shape)}")
    return Entry(dtype, tuple(shape), data_start + begin, data_start + end)


def _check_contiguous(entries: Mapping[str, Entry], data_start: int, file_size: int, where: str) -> None:
    cursor = data_start
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != cursor:
            fault = "overlaps the one before it" if entry.begin < cursor else "leaves a hole before it"
            raise Damaged(f"tensor {key[:80]!r} {fault}", where=where)
        cursor = entry.end
    if cursor != file_size:
        raise Damaged(f"holds {file_size} bytes, its header speaks of {cursor}", where=where)
