"""What a run's data is, exactly: the files behind it, what they became, and one fingerprint over all."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from base.errors import UmbelError
from base.files import read_json, sha256_json, write_text
from configs.schema import Data, Source
from data.files import OpenSource
from data.manifest_shape import SPLITS, check_shape
from data.rows.parts import PART_BYTES, SHARD_TOKENS
from data.sources import sources_of
from data.tokens.tokenizer import TextTokenizer

VERSION = 3
NAME = "manifest.json"
NEW = "is new"
COLOURED = ("fingerprint", "about", "sizes", "estimates", "unigram_entropy")
"""Keys outside the fingerprint: itself, what people say of the sources, sizes of
compressed files, and floats."""

_OF_SOURCE = ("kind", "part", "field", "template", "filters", "format", "revision", "skipped")
_OF_ALL = ("mode", "sequence_length", "packing", "held_out", "max_bytes", "shuffle_window", "cut")

Manifest = dict[str, Any]


def definition_of(data: Data, sources: dict[str, OpenSource], tokenizer: TextTokenizer) -> Manifest:
    """What decides every row: equal definitions, equal rows. Weights are not in it: they only mix rows."""
    described = sources_of(data)
    return {
        "version": VERSION,
        **_settings_of_all(data),
        "tokenizer_hash": tokenizer.hash,
        "sources": {
            name: {
                **_settings(described[name]),
                "format": source.reading.format,
                "revision": source.revision,
                "skipped": list(source.skipped),
                "files": [file.entry for file in source.files],
            }
            for name, source in sources.items()
        },
    }


def _settings_of_all(data: Data) -> Manifest:
    return {
        "mode": data.mode,
        "sequence_length": data.sequence_length,
        "packing": data.packing,
        "held_out": data.held_out,
        "max_bytes": data.max_bytes,
        "shuffle_window": data.shuffle_window if data.mode == "streaming" else None,
        "cut": [PART_BYTES, SHARD_TOKENS] if data.mode == "prepared" else None,
    }


def _settings(source: Source) -> Manifest:
    return {
        "kind": source.kind,
        "part": source.part,
        "field": source.field,
        "template": source.template,
        "filters": asdict(source.filters),
    }


def about(data: Data) -> Manifest:
    """What the config says of each source, and nothing depends on."""
    return {
        name: {"license": source.license, "language": source.language}
        for name, source in sources_of(data).items()
    }


def folder_name(manifest: Manifest) -> str:
    """What the folder of a definition, or of the manifest that it became, is called in the cache."""
    made = (*SPLITS, *COLOURED, "sample", "vocab_size", "pad_id", "eos_id")
    sources = {
        name: {key: value for key, value in source.items() if key not in made}
        for name, source in manifest["sources"].items()
    }
    definition = {key: value for key, value in manifest.items() if key not in made} | {"sources": sources}
    return sha256_json(definition)[:20]


def fingerprint(manifest: Manifest) -> str:
    """sha256 over the definition and the rows; what the libraries' versions may colour plays no part."""
    return sha256_json({key: value for key, value in manifest.items() if key not in COLOURED})


def write_manifest(path: Path, manifest: Manifest) -> None:
    """On one line: indented, the entries of 100,000 files take three times the room."""
    write_text(path, json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        UmbelError: there is none (it was not finished), it is none, or it is another version's.
    """
    path, again = folder / NAME, "prepare the data again"
    if not path.is_file():
        raise UmbelError("holds no prepared data", where=str(folder), fix=again)
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise UmbelError(f"is not JSON ({error})", where=str(path), fix=again) from error
    check_manifest(manifest, str(path))
    return dict(manifest)


def check_manifest(manifest: Manifest, where: str) -> None:
    """Refuse a manifest that this version of Umbel cannot read.

    Raises:
        UmbelError: it is older or newer, or none at all.
    """
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        fix = "install a newer Umbel" if newer else "prepare the data again"
        raise UmbelError(f"is a manifest of version {version}, not {VERSION}", where=where, fix=fix)
    check_shape(manifest, where)


def check_unchanged(old: Manifest, new: Manifest) -> None:
    """Refuse to go on with other data than a run began with.

    Raises:
        UmbelError: names the first file, or else the first setting, that changed.
    """
    check_manifest(old, "the run's data.json")
    if old["fingerprint"] == new["fingerprint"]:
        return
    for name in sorted(old["sources"].keys() | new["sources"].keys()):
        before, after = old["sources"].get(name), new["sources"].get(name)
        if before is None or after is None:
            raise _changed(f"source {name}", NEW if before is None else "is gone")
        for key in _OF_SOURCE:
            _check_equal(f"source {name}: {key}", before[key], after[key])
        _check_files(name, before["files"], after["files"])
    for key in _OF_ALL:
        _check_equal(f"data.{key}", old[key], new[key])
    _check_tokenizer(old["tokenizer_hash"], new["tokenizer_hash"])
    raise _changed("data", "the same files and tokenizer now give other rows (another version of a library?)")


def check_same_settings(old: Manifest, data: Data, tokenizer: TextTokenizer | None) -> None:
    """Refuse settings that are not a manifest's, without a look at the files; ``tokenizer`` is the one that
    the config gives, if it does.

    Raises:
        UmbelError: names the first setting that changed.
    """
    check_manifest(old, "the run's data.json")
    described = sources_of(data)
    sources = {
        name: old["sources"][name] | _settings(described[name]) if name in old["sources"] else {}
        for name in described
    }
    new = old | {"sources": sources, **_settings_of_all(data), "fingerprint": None}
    if tokenizer is not None:
        new["tokenizer_hash"] = tokenizer.hash
    if any(old[key] != new[key] for key in (*_OF_ALL, "sources", "tokenizer_hash")):
        check_unchanged(old, new)


def _check_files(source: str, before: list[Manifest], after: list[Manifest]) -> None:
    old, new = ({file["name"]: file for file in files} for files in (before, after))
    for name in sorted(old.keys() | new.keys()):
        where = f"source {source}: {name}"
        if name not in new:
            raise _changed(where, "is gone")
        if name not in old:
            raise _changed(where, NEW)
        if old[name]["pin"] != new[name]["pin"]:
            pins = f"{_short(old[name]['pin'])}, now {_short(new[name]['pin'])}"
            raise _changed(where, f"has changed since the run began ({pins})")
        for key in ("size", "kind", "rows", "blocks"):
            _check_equal(f"{where}: {key}", old[name][key], new[name][key])


def _short(pin: str) -> str:
    """``sha256 0123456789ab``."""
    kind, _, value = pin.partition(":")
    return f"{kind} {value[:12]}"


def _check_tokenizer(before: str, after: str) -> None:
    if before != after:
        raise UmbelError(
            f"the tokenizer ({after[:12]}) is not the one the data was made with ({before[:12]})",
            where="data.tokenizer",
            fix="give data.tokenizer.path that one; each run keeps its own in its folder, as tokenizer/",
        )


def _check_equal(where: str, before: object, after: object) -> None:
    if before != after:
        raise _changed(where, f"was {_told(before)}, now is {_told(after)}")


def _told(value: object) -> str:
    """``null`` in place of None, and of filters only those that are set."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if item}
    return (
        json.dumps(value, ensure_ascii=False, sort_keys=True)
        if isinstance(value, dict | list)
        else str(value)
    )


def _changed(where: str, what: str) -> UmbelError:
    mend = "take it away" if what == NEW else "restore it"
    return UmbelError(what, where=where, fix=f"{mend}, or start a run under another name")
