"""Whether a manifest is one: it may come from another institution, and its names become paths."""

from __future__ import annotations

import re
from typing import Any

from base.errors import UmbelError
from data.files import SOURCE_NAME

SPLITS = ("train", "held_out")
_SHARD = re.compile(r"shard-\d+\.parquet")
_REVISION = re.compile(r"[\w.-]+")


def check_shape(manifest: Any, where: str) -> None:
    """Refuse a manifest with names that lead out of their folder, or numbers that count nothing.

    Raises:
        UmbelError: names the first of them.
    """
    try:
        for name, source in manifest["sources"].items():
            _check_source(name, source)
    except _Wrong as error:
        raise UmbelError(f"cannot be trusted: {error}", where=where, fix="fetch it again") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"is no manifest ({type(error).__name__}: {error})"
        raise UmbelError(what, where=where, fix="fetch it again") from error


class _Wrong(Exception):
    """What is wrong with a manifest."""


def _check_source(name: str, source: dict[str, Any]) -> None:
    if not SOURCE_NAME.fullmatch(name):
        raise _Wrong(f"a source is named {name!r}")
    revision = source["revision"]
    if revision is not None and not _REVISION.fullmatch(revision):
        raise _Wrong(f"source {name} has the revision {revision!r}")
    for file in source["files"]:
        _check_file(file)
    for split in SPLITS:
        for shard in source.get(split, {}).get("shards", ()):
            if not _SHARD.fullmatch(shard["name"]) or not _counts(shard["rows"]):
                raise _Wrong(f"source {name} has the shard {shard['name']!r} of {shard['rows']} rows")


def _check_file(file: dict[str, Any]) -> None:
    name = file["name"]
    if name.startswith("/") or ".." in name.split("/"):
        raise _Wrong(f"the file {name!r} lies outside of its source")
    if not (_counts(file["size"]) and _counts(file["rows"]) and isinstance(file["pin"], str)):
        raise _Wrong(f"the file {name!r} has {file['size']} bytes and {file['rows']} rows")
    before = -1
    for first, place in file["blocks"]:
        if not (_counts(place) and _counts(first) and before < first < file["rows"]):
            raise _Wrong(f"the file {name!r} has a block at row {first}")
        before = first


def _counts(number: Any) -> bool:
    return type(number) is int and number >= 0
