"""The manifest: written last, so that it stands for a whole checkpoint; believed only after every check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from base.files import atomic_file, sha256_file
from checkpoint import schema
from checkpoint.cover import check_cover, pieces
from checkpoint.format import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    MAX_MANIFEST,
    Damaged,
    Foreign,
    check_name,
    shown,
    split_key,
    step_of,
)
from checkpoint.schema import check_fields
from checkpoint.strict import compact_json, is_count, no_garbage, parse_json, read_plain

Manifest = dict[str, Any]

SEAL = b'{"checksum":"'


def build(
    facts: Mapping[str, Any],
    parameters: Mapping[str, Sequence[int]],
    files: Sequence[Mapping[str, Any]],
) -> Manifest:
    """The manifest of a save.

    Args:
        facts: the keys of ``checkpoint.schema.FACTS``; ``extra`` may be left out.
        parameters: shape of every parameter, trained or frozen.
        files: what :func:`checkpoint.fragment.write_fragments` returned, of all ranks.

    Raises:
        ValueError: a fact is missing or wrong, or the fragments are not exactly the state.
    """
    manifest = {
        "extra": {},
        **facts,
        "format": FORMAT,
        "format_version": facts.get("format_version", FORMAT_VERSION),
        "parameters": {name: list(shape) for name, shape in parameters.items()},
        "files": sorted(files, key=lambda file: str(file["name"])),
    }
    # What is checked is what will be read: lists for tuples, no NaN, no key that is not text.
    manifest = json.loads(compact_json(manifest))
    check(manifest)
    return manifest


def seal(manifest: Manifest) -> bytes:
    """The manifest as it is written: its first key is the sha256 of all that follows that hash.

    It finds rot and careless edits. Who may have written the file is a matter for signatures.
    """
    tail = b'",' + compact_json(manifest).encode()[1:]
    return SEAL + sha256(tail).hexdigest().encode() + tail


def is_sealed(raw: bytes) -> bool:
    start, tail = raw[: len(SEAL) + 64], raw[len(SEAL) + 64 :]
    return start == SEAL + sha256(tail).hexdigest().encode()


def write(folder: Path, manifest: Manifest) -> None:
    with atomic_file(folder / MANIFEST) as file:
        file.write(seal(manifest))


def read(folder: Path, *, run_id: str | None = None) -> Manifest:
    """The checked manifest of a checkpoint folder.

    Args:
        run_id: refuse the state of any other run.

    Raises:
        Damaged: missing, or wrong in any respect.
        Foreign: of a newer format version, or of another run.
    """
    return read_with_digest(folder, run_id=run_id)[0]


def read_with_digest(folder: Path, *, run_id: str | None = None) -> tuple[Manifest, str]:
    """As :func:`read`; and the identity of what was read, also where somebody changes the file meanwhile."""
    with no_garbage():
        return _read(folder, run_id)


def _read(folder: Path, run_id: str | None) -> tuple[Manifest, str]:
    path = folder / MANIFEST
    raw = read_plain(path, MAX_MANIFEST)
    manifest = parse_json(raw, str(path))
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if is_count(version) and version > FORMAT_VERSION:
        raise Foreign(
            f"format version {version}, this Umbel reads up to {FORMAT_VERSION}",
            where=str(path),
            fix="install a newer Umbel",
        )
    if not is_sealed(raw):
        raise Damaged("its content is not what was saved (checksum differs)", where=str(path))
    del manifest["checksum"]
    try:
        check(manifest)
    except ValueError as error:
        raise Damaged(str(error), where=str(path)) from error
    if step_of(folder.name) not in (None, manifest["step"]):
        raise Damaged(f"step {manifest['step']} in a folder of another step", where=str(path))
    if run_id is not None and manifest["run_id"] != run_id:
        raise Foreign(
            f"belongs to run '{shown(manifest['run_name'])}' ({shown(manifest['run_id'])}), not to {run_id}",
            where=str(path),
            fix="give every run its own folder",
        )
    return manifest, sha256(raw).hexdigest()


def digest(folder: Path) -> str:
    """The checkpoint's identity: sha256 of its manifest, which holds the sha256 of everything else."""
    return sha256_file(folder / MANIFEST)


def check(manifest: Any) -> None:
    """Check every field and that the fragments are exactly the state.

    Raises:
        ValueError: says which field or tensor is wrong.
    """
    check_fields(manifest, schema.MANIFEST, "the manifest")
    check_fields(manifest["topology"], schema.TOPOLOGY, "topology", more=True)
    for index, group in enumerate(manifest["groups"]):
        check_fields(group, schema.GROUP, f"groups[{index}]")
    for name, shape in manifest["parameters"].items():
        check_name(name)
        if not schema.is_shape(shape):
            raise ValueError(f"parameters: '{name}' must have a shape of whole numbers")
    _check_tied(manifest["tied"], manifest["parameters"])
    for index, file in enumerate(manifest["files"]):
        _check_file(file, f"files[{index}]")
    names = [file["name"] for file in manifest["files"]]
    if len(names) != len(set(names)):
        raise ValueError("files: a name occurs twice")
    check_cover(pieces(manifest["files"]), manifest["parameters"], manifest["groups"])


def _check_tied(tied: Mapping[str, str], parameters: Mapping[str, Any]) -> None:
    for other, name in tied.items():
        if check_name(other) in parameters:
            raise ValueError(f"tied: '{other}' is a parameter of its own")
        if name not in parameters:
            raise ValueError(f"tied: '{other}' is tied to '{shown(name)}', which is no parameter")


def _check_file(file: Any, label: str) -> None:
    check_fields(file, schema.FILE, label)
    for key, fragment in file["fragments"].items():
        split_key(key)
        check_fields(fragment, schema.FRAGMENT, f"{label}: '{key}'")
        if len(fragment["offsets"]) != len(fragment["shape"]):
            raise ValueError(f"{label}: '{key}' must have as many offsets as dimensions")
