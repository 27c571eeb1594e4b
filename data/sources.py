"""The sources of a run, opened: which files, which format, in which share."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from base.errors import UmbelError
from configs.schema import Data, Source
from data.document import Document, OpenSource, PinnedFile
from data.python_corpus import python_documents, python_files
from data.readers import ENDINGS, MESSAGES, Format, Kind, columns, kind_of, missing_column, read

PATH_SOURCE = "data"
"""The name of the one source that ``data.path`` stands for."""


def sources_of(data: Data) -> dict[str, Source]:
    """The sources by name; ``data.path`` is the short form of one."""
    return {PATH_SOURCE: Source(path=data.path)} if data.path else dict(data.sources)


def weights_of(data: Data) -> dict[str, float]:
    """The share of each source in the mixture, relative; sources of weight 0 left out."""
    return {name: source.weight for name, source in sources_of(data).items() if source.weight > 0}


def key_of(data: Data, name: str) -> str:
    """Where the config names a source: what an error points at."""
    return f"data.path={data.path}" if data.path else f"data.sources.{name}"


def open_sources(data: Data, say: Callable[[str], None] = lambda _: None) -> dict[str, OpenSource]:
    """Find every source's files and format.

    Raises:
        UmbelError: a path that is missing or matches no file, an unknown file type, a missing column, or a
            name that is no folder's.
    """
    for name in sources_of(data):
        # It names a folder of the cache, and a config may come from another institution.
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise UmbelError(
                "cannot name a source", where=key_of(data, name), fix="use letters, digits, . _ -"
            )
    return {name: _open(name, source, data, say) for name, source in sources_of(data).items()}


def _open(name: str, source: Source, data: Data, say: Callable[[str], None]) -> OpenSource:
    if source.kind == "python":
        part = source.part or "code"
        files = python_files(part)
        return OpenSource(name, "text", files, partial(python_documents, part, files), data.max_bytes)
    files = find_files(source.path or "", key_of(data, name))
    if source.kind == "auto":
        files = [file for file in files if kind_of(file.path)] or files
    kinds = [_kind(file.path, source) for file in files]
    form = _format(name, source, data, files[0].path, kinds[0], say)
    return OpenSource(name, form, files, partial(_read_all, files, kinds, source.field, form), data.max_bytes)


def _read_all(files: list[PinnedFile], kinds: list[Kind], field: str, form: Format) -> Iterator[Document]:
    return itertools.chain.from_iterable(
        read(file.path, kind, field, form) for file, kind in zip(files, kinds, strict=True)
    )


def find_files(path: str, key: str) -> list[PinnedFile]:
    """The files of a file, folder (hidden ones left out) or glob, sorted, named relative to it."""
    place = Path(path).expanduser()
    if place.is_file():
        return [PinnedFile(place.name, place)]
    if place.is_dir():
        root, found = place, place.rglob("*")
    elif glob.has_magic(path):
        literal = itertools.takewhile(lambda part: not glob.has_magic(part), place.parts[:-1])
        root, found = Path(*literal), (Path(match) for match in glob.glob(str(place), recursive=True))
    else:
        raise UmbelError("no such file or folder", where=_at(key, path), fix="check the path")
    names = {file.relative_to(root).as_posix(): file for file in found if file.is_file()}
    visible = sorted(name for name in names if not any(part.startswith(".") for part in Path(name).parts))
    if not visible:
        raise UmbelError("no files there", where=_at(key, path), fix="check the path or the pattern")
    return [PinnedFile(name, names[name]) for name in visible]


def _at(key: str, path: str) -> str:
    return key if key.endswith(path) else f"{key}.path={path}"


def _kind(path: Path, source: Source) -> Kind:
    if source.kind in ("text", "jsonl", "parquet"):
        return source.kind
    kind = kind_of(path)
    if kind is None:
        known = ", ".join(ENDINGS)
        raise UmbelError(f"unknown file type (known: {known})", where=str(path), fix="set the source's kind")
    return kind


def _format(
    name: str, source: Source, data: Data, path: Path, kind: Kind, say: Callable[[str], None]
) -> Format:
    """Texts or chats. ``auto`` looks at the first record's columns and says what it took them for."""
    if data.format == "messages" and kind == "text":
        raise UmbelError("plain text holds no chats", where=str(path), fix="set data.format=text")
    if data.format != "auto" or kind == "text":
        return "text" if kind == "text" or data.format == "text" else "messages"
    existing = columns(path, kind)
    if MESSAGES in existing:
        say(f"source {name}: chats (column {MESSAGES})")
        return "messages"
    if existing and source.field not in existing:
        raise missing_column(str(path), source.field, existing)
    say(f"source {name}: texts (column {source.field})")
    return "text"
