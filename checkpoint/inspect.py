"""What a checkpoint holds, as plain data for the command line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint import manifest as manifests
from checkpoint.format import split_key
from checkpoint.safetensors import tensor_bytes

COPIED = (
    "format_version", "run_id", "run_name", "step", "sequences", "tokens", "parent",
    "config_fingerprint", "data_fingerprint", "software", "topology", "tied", "loss_scaler",
)  # fmt: skip


def describe(folder: Path) -> dict[str, Any]:
    """Step, tokens, topology, counts, bytes, optimizer groups and ties; reads the manifest alone.

    Raises:
        Damaged, Foreign: as :func:`checkpoint.manifest.read`.
    """
    manifest, digest = manifests.read_with_digest(folder)
    return {
        "folder": folder.name,
        "manifest_sha256": digest,
        **{key: manifest[key] for key in COPIED},
        "parameters": _parameters(manifest),
        "groups": [_group(group, manifest["parameters"]) for group in manifest["groups"]],
        "bytes": sum(file["size"] for file in manifest["files"]),
        "bytes_by_kind": _bytes_by_kind(manifest),
        "files": [{key: file[key] for key in ("name", "size", "sha256")} for file in manifest["files"]],
    }


def _group(group: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    elements = sum(math.prod(shapes[name]) for name in group["names"])
    return {**group, "names": len(group["names"]), "parameters": elements}


def _parameters(manifest: manifests.Manifest) -> dict[str, int]:
    """How many elements are trained and how many frozen."""
    trained = {name for group in manifest["groups"] for name in group["names"]}
    sizes = {name: math.prod(shape) for name, shape in manifest["parameters"].items()}
    return {
        "tensors": len(sizes),
        "trained": sum(size for name, size in sizes.items() if name in trained),
        "frozen": sum(size for name, size in sizes.items() if name not in trained),
    }


def _bytes_by_kind(manifest: manifests.Manifest) -> dict[str, int]:
    total: Counter[str] = Counter()
    for file in manifest["files"]:
        for key, one in file["fragments"].items():
            total[split_key(key)[1]] += tensor_bytes(one["dtype"], one["shape"])
    return dict(sorted(total.items()))
