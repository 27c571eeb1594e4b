"""The files of one source, wherever it lies, in the order in which its documents are numbered."""

from __future__ import annotations

from base.errors import UmbelError
from configs.schema import Source
from data.files import FoundFile, Kind
from data.places.hub import list_hub, pin_url
from data.places.known import state_of
from data.places.listing import list_local, local_path
from data.places.python_corpus import python_files, python_path
from data.places.urls import Info, check_no_secret, found_file, is_url, list_url, url_of
from data.readers import ENDINGS, kind_of
from data.readers.streams import COMPRESSIONS

HF = "hf://"


def find(source: Source, key: str) -> tuple[list[FoundFile], str | None]:
    """The files of a source, sorted by name (the Python library: by its hash), and a hub's commit.

    Raises:
        UmbelError: nothing is there, a file type that no reader knows, a URL with a secret in it, or a
            server that cannot be reached.
    """
    path = source.path or ""
    where = key if key.endswith(path) else f"{key}.path={path}"
    if source.kind == "python":
        files = python_files(source.part or "code")
        return [_local_file(name, str(place), "python") for name, place in files.items()], None
    if source.kind == "hub":
        listed, commit = list_hub(source, where)
        return _remote_files(listed, source), commit
    if is_url(path):
        check_no_secret(path, key)
        if path.startswith(HF):
            url, commit = pin_url(path, where, source.revision)
            return _remote_files(list_url(url, where), source), commit
        return _remote_files(list_url(path, where), source), None
    local = list_local(path, where)
    return [_local_file(name, local[name], kind) for name, kind in _kinds(local, source).items()], None


def locate(source: Source, name: str, revision: str | None) -> str:
    """Where the file of that name in a manifest lies, by this machine's config; nothing is listed."""
    path = source.path or ""
    if source.kind == "python":
        return str(python_path(name))
    if source.kind == "hub":
        return f"{HF}datasets/{path}@{revision}/{name}"
    if is_url(path):
        return url_of(pin_url(path, path, revision)[0] if path.startswith(HF) else path, name)
    return local_path(path, name)


def limit_files(files: list[FoundFile], max_bytes: int, key: str) -> list[FoundFile]:
    """The first files that together have at most ``max_bytes``.

    Raises:
        UmbelError: the first is longer; or a file may hold many documents, and would have to be cut.
    """
    kept, total = [], 0
    for file in files:
        packed = file.name.lower().endswith(tuple(COMPRESSIONS))
        if packed or file.kind not in ("text", "python"):
            what = f"data.max_bytes cannot cut {'packed' if packed else file.kind} files in streaming mode"
            raise UmbelError(what, where=key, fix="set data.mode=prepared, or drop data.max_bytes")
        total += file.size
        if total > max_bytes:
            break
        kept.append(file)
    if not kept:
        what = f"data.max_bytes={max_bytes} is less than the first file's {files[0].size}"
        raise UmbelError(what, where=key, fix="raise it")
    return kept


def _local_file(name: str, path: str, kind: Kind) -> FoundFile:
    try:
        size, stamp = state_of(path)
    except OSError as error:
        raise UmbelError(f"cannot be read ({error.strerror})", where=path) from error
    return FoundFile(name, path, kind, size, stamp)


def _remote_files(listed: dict[str, tuple[str, Info]], source: Source) -> list[FoundFile]:
    kinds = _kinds({name: url for name, (url, _) in listed.items()}, source)
    return [found_file(name, listed[name][0], kind, listed[name][1]) for name, kind in kinds.items()]


def _kinds(places: dict[str, str], source: Source) -> dict[str, Kind]:
    """The reader of each file: the source's kind, or by its ending. In a folder of many kinds of file those
    that no reader knows are left out."""
    if source.kind in ("text", "jsonl", "parquet", "arrow"):
        return dict.fromkeys(places, source.kind)
    kinds = {name: kind for name in sorted(places) if (kind := kind_of(name))}
    if not kinds:
        known = ", ".join(ENDINGS)
        what = f"unknown file type (known: {known})"
        raise UmbelError(what, where=next(iter(places.values())), fix="set the source's kind")
    return kinds
