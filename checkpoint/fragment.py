"""A fragment: one piece of one tensor of the state, in memory, in a file's header, in the manifest.

In a file a piece is named ``<parameter>|<kind>``, and its place in the tensor stands in the note that
torch.distributed.checkpoint's Hugging Face reader understands (torch/distributed/checkpoint/hf_storage.py,
``HuggingFaceStorageReader.read_metadata``): equal keys in different files are pieces of one tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint.format import BUFFER, DTYPE_BYTES, FORMAT, FORMAT_VERSION, Damaged, split_key, tensor_key
from checkpoint.safetensors import Bytes, Entry, Tensor, read_header, tensor_bytes, write_file
from checkpoint.strict import is_counts, parse_json, plain_size

SHARDING_NOTE = "DCP_SHARDING_INFO"
OFFSETS = "saved_offsets"


class Extent(NamedTuple):
    """Where a piece lies in its tensor.

    One dimension: a range of the flattened tensor. As many as the tensor has: a box in it.
    """

    dtype: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def start(self) -> int:
        """First element, counted in the flattened tensor; a box of version 1 is whole and starts at 0."""
        return self.offsets[0] if self.offsets else 0

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


class Fragment(NamedTuple):
    """A piece to save.

    Args:
        kind: "master", "exp_avg", "exp_avg_sq", "frozen", ...: elements [start, start + n) of the flattened
            parameter, shape (n,). "buffer": the whole tensor, start 0, its full shape.
        data: the raw bytes, C order, little-endian; or a function that gives them when they are written, so
            that no two fragments need be on the host at once.
        dtype: as safetensors spells it: "F32", "BF16", "I64", ...
    """

    parameter: str
    kind: str
    start: int
    data: Bytes | Callable[[], Bytes]
    dtype: str
    shape: tuple[int, ...]

    @property
    def key(self) -> str:
        return tensor_key(self.parameter, self.kind)

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.dtype, self.shape)

    @property
    def extent(self) -> Extent:
        whole = self.kind == BUFFER
        return Extent(self.dtype, (0,) * len(self.shape) if whole else (self.start,), tuple(self.shape))


def check_fragment(fragment: Fragment, parameters: Mapping[str, Sequence[int]]) -> Fragment:
    """The fragment itself if it may be written.

    Raises:
        ValueError: it may not: its name, kind, dtype, or a range outside its parameter.
    """
    split_key(fragment.key)
    if fragment.dtype not in DTYPE_BYTES:
        raise ValueError(f"'{fragment.key}': unknown dtype '{fragment.dtype}'")
    if fragment.kind == BUFFER:
        if fragment.start:
            raise ValueError(f"'{fragment.key}': a {fragment.kind} tensor is written whole")
        return fragment
    if fragment.parameter not in parameters:
        raise ValueError(f"'{fragment.key}': no such parameter")
    numel = math.prod(parameters[fragment.parameter])
    if len(fragment.shape) != 1 or fragment.start < 0 or fragment.extent.stop > numel:
        raise ValueError(
            f"'{fragment.key}': start {fragment.start}, shape {fragment.shape} of {numel} elements"
        )
    return fragment


def write_fragments(path: Path, fragments: Sequence[Fragment]) -> dict[str, Any]:
    """Write one state file; return its entry for the manifest: name, size, sha256, fragments."""
    # A torch view of the file must be aligned, and safetensors allows no padding: large dtypes first.
    ordered = sorted(fragments, key=lambda fragment: (-DTYPE_BYTES[fragment.dtype], fragment.key))
    tensors = [Tensor(one.key, one.dtype, tuple(one.shape), one.data) for one in ordered]
    extents = {fragment.key: fragment.extent for fragment in ordered}
    note = {key: {OFFSETS: list(extent.offsets)} for key, extent in extents.items()}
    metadata = {
        "format": "pt",
        "umbel_format": f"{FORMAT} {FORMAT_VERSION}",
        SHARDING_NOTE: json.dumps(note, separators=(",", ":")),
    }
    size, sha256 = write_file(path, tensors, metadata)
    index = {
        key: {"dtype": one.dtype, "offsets": list(one.offsets), "shape": list(one.shape)}
        for key, one in extents.items()
    }
    return {"name": path.name, "size": size, "sha256": sha256, "fragments": index}


def read_fragments(file: BufferedReader, entry: Mapping[str, Any], where: str) -> dict[str, Entry]:
    """Byte ranges of a state file's tensors, after checking size and header against its manifest entry.

    Raises:
        Damaged: they differ, or the file is not safetensors.
    """
    if plain_size(file) != entry["size"]:
        raise Damaged(f"holds {plain_size(file)} bytes, the manifest says {entry['size']}", where=where)
    header = read_header(file, where)
    note = parse_json(header.metadata.get(SHARDING_NOTE, "{}").encode("utf-8", "replace"), where)
    found = {key: _index_entry(one, _offsets(note, key, where)) for key, one in header.entries.items()}
    expected = entry["fragments"]
    if found != expected:
        differing = [key for key in found | expected if found.get(key) != expected.get(key)]
        raise Damaged(f"its header and the manifest differ at {min(differing)[:80]!r}", where=where)
    return header.entries


def _index_entry(entry: Entry, offsets: list[int]) -> dict[str, Any]:
    return {"dtype": entry.dtype, "offsets": offsets, "shape": list(entry.shape)}


def _offsets(note: Any, key: str, where: str) -> list[int]:
    saved = note.get(key) if isinstance(note, dict) else None
    offsets = saved.get(OFFSETS) if isinstance(saved, dict) else None
    if offsets is None or not is_counts(offsets):
        raise Damaged(f"{SHARDING_NOTE} says no offsets of {key[:80]!r}", where=where)
    return offsets
