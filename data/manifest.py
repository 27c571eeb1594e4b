"""What was prepared, exactly: the files behind it, what they became, and one fingerprint over all."""

from __future__ import annotations

from typing import Any

from base.errors import UmbelError
from base.files import sha256_json
from configs.schema import Data
from data.document import OpenSource
from data.sources import sources_of
from data.tokenizer import TextTokenizer

VERSION = 2
NAME = "manifest.json"
SPLITS = ("train", "held_out")
COLOURED = ("fingerprint", "sizes", "unigram_entropy")
"""Keys outside the fingerprint: itself, sizes of Arrow files, and a float."""

Manifest = dict[str, Any]


def definition_of(data: Data, sources: dict[str, OpenSource], tokenizer: TextTokenizer) -> Manifest:
    """What decides every row: equal definitions, equal rows. Weights are not in it: they only mix rows."""
    described = sources_of(data)
    return {
        "version": VERSION,
        "sequence_length": data.sequence_length,
        "packing": data.packing,
        "held_out": data.held_out,
        "max_bytes": data.max_bytes,
        "tokenizer_hash": tokenizer.hash,
        "sources": {
            name: {
                "kind": described[name].kind,
                "part": described[name].part,
                "field": described[name].field,
                "format": source.format,
                "files": [file.pin for file in source.files],
            }
            for name, source in sources.items()
        },
    }


def fingerprint(manifest: Manifest) -> str:
    """sha256 over the definition and the rows; what the libraries' versions may colour plays no part."""
    return sha256_json({key: value for key, value in manifest.items() if key not in COLOURED})


def check_unchanged(old: Manifest, new: Manifest) -> None:
    """Refuse to go on with other data than a run began with.

    Raises:
        UmbelError: names the first file, or else the first setting, that changed.
    """
    if old["fingerprint"] == new["fingerprint"]:
        return
    for name in sorted(old["sources"].keys() | new["sources"].keys()):
        before, after = old["sources"].get(name), new["sources"].get(name)
        if before is None or after is None:
            raise _changed(f"source {name}", "is new" if before is None else "is gone")
        _check_files(name, before["files"], after["files"])
        for key in ("kind", "part", "field", "format"):
            _check_equal(f"source {name}: {key}", before[key], after[key])
    for key in ("version", "sequence_length", "packing", "held_out", "max_bytes", "tokenizer_hash"):
        _check_equal(key, old[key], new[key])
    raise _changed("data", "the same files and tokenizer now give other rows (another version of a library?)")


def _check_files(source: str, before: list[Manifest], after: list[Manifest]) -> None:
    old, new = ({file["name"]: file for file in files} for files in (before, after))
    for name in sorted(old.keys() | new.keys()):
        where = f"source {source}: {name}"
        if name not in new:
            raise _changed(where, "is gone")
        if name not in old:
            raise _changed(where, "is new")
        if old[name] != new[name]:
            hashes = f"sha256 {old[name]['sha256'][:12]}, now {new[name]['sha256'][:12]}"
            raise _changed(where, f"has changed since the run began ({hashes})")


def _check_equal(where: str, before: object, after: object) -> None:
    if before != after:
        raise _changed(where, f"was {before}, now is {after}")


def _changed(where: str, what: str) -> UmbelError:
    return UmbelError(what, where=where, fix="restore it, or start a run under another name")
