"""The sources of a run, opened: which files, which format, in which share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from base.errors import UmbelError
from base.files import sha256_json
from configs.check_data import PATH_SOURCE
from configs.schema import Data, Source
from data.files import SOURCE_NAME, Format, FoundFile, OpenSource, Reading
from data.places.finding import find, limit_files
from data.places.finding import locate as locate
from data.places.index import index
from data.places.measure import columns_of
from data.places.retry import BadFile
from data.readers import MESSAGES, missing_column

Say = Callable[[str], None]

FETCHED = "fetched"
"""The folder of the cache that holds downloaded files."""


def sources_of(data: Data) -> dict[str, Source]:
    """The sources by name; ``data.path`` is the short form of one."""
    return {PATH_SOURCE: Source(path=data.path)} if data.path else dict(data.sources)


def weights_of(data: Data) -> dict[str, float]:
    """The share of each source in the mixture, relative; sources of weight 0 left out."""
    return {name: source.weight for name, source in sources_of(data).items() if source.weight > 0}


def key_of(data: Data, name: str) -> str:
    """Where the config names a source: what an error points at."""
    return f"data.path={data.path}" if data.path else f"data.sources.{name}"


def open_sources(data: Data, cache: Path, say: Say = lambda _: None) -> dict[str, OpenSource]:
    """Find every source's files and format, count their rows and take their pins.

    In streaming mode ``data.max_bytes`` keeps the first whole files of a source; in prepared mode it cuts
    the text that is read, not the files that are found.

    Args:
        cache: the folder for the index of what was counted and for files that had to be fetched.

    Raises:
        UmbelError: a path that is missing or matches no file, an unknown file type, a missing column, a
            file that cannot be read or fetched, or a name that is no folder's.
    """
    for name in sources_of(data):
        if not SOURCE_NAME.fullmatch(name):
            raise UmbelError(
                "cannot name a source", where=key_of(data, name), fix="use letters, digits, . _ -"
            )
    return {name: _open(name, source, data, cache, say) for name, source in sources_of(data).items()}


def _open(name: str, source: Source, data: Data, cache: Path, say: Say) -> OpenSource:
    key = key_of(data, name)
    found, revision = find(source, key)
    if data.mode == "streaming" and data.max_bytes is not None:
        found = limit_files(found, data.max_bytes, key)
    form = _format(name, source, data, found, cache / FETCHED, say)
    identity = [source.kind, source.path, source.config, source.split, source.part, source.trust_etag]
    indexed = index(
        found,
        store=cache / "index" / f"{sha256_json(identity)[:20]}.json",
        folder=cache / FETCHED,
        keep_bytes=int(data.cache_gb * 1e9),
        trust_etag=source.trust_etag,
        skip_bad=data.on_bad_file == "skip",
        say=say,
    )
    if not indexed.files:
        raise UmbelError("none of its files can be read", where=key, fix="see data.on_bad_file")
    reading = Reading(form, source.field, source.template, source.part, tuple(source.filters.columns))
    return OpenSource(name, key, reading, indexed.files, indexed.skipped, revision)


def _format(name: str, source: Source, data: Data, found: list[FoundFile], folder: Path, say: Say) -> Format:
    """Texts or chats. ``auto`` looks at the first record's columns and says what it took them for."""
    first = found[0]
    if data.format == "messages" and first.kind == "text":
        raise UmbelError("plain text holds no chats", where=first.location, fix="set data.format=text")
    if first.kind in ("text", "python") or source.template:
        return "text"
    if data.format != "auto":
        return data.format
    first, existing = _first_columns(source, data, found, folder)
    if MESSAGES in existing:
        say(f"source {name}: chats (column {MESSAGES})")
        return "messages"
    if existing and source.field not in existing:
        raise missing_column(first.location, source.field, existing)
    say(f"source {name}: texts (column {source.field})")
    return "text"


def _first_columns(
    source: Source, data: Data, found: list[FoundFile], folder: Path
) -> tuple[FoundFile, list[str]]:
    """The columns of the first file that can be read, where others are to be skipped."""
    for file in found:
        try:
            return file, columns_of(file, folder, source.trust_etag)
        except BadFile:
            if data.on_bad_file == "stop" or file is found[-1]:
                raise
    raise AssertionError("a source has files")
