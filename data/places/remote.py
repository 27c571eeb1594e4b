"""A local file of exactly the pinned content for every file of a source, downloaded once per node."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from base.files import fsync_dir
from data.files import FoundFile, SourceFile
from data.places.locks import locked
from data.places.pins import RESTORE, check_local, is_checked, mismatch, pin_of
from data.places.retry import BadFile, BrokenTransfer, ChangedFile, persist
from data.places.urls import etag_of, open_filesystem, state_of_url, vouched


def fetch(file: SourceFile, folder: Path) -> Path:
    """A local file of the content that ``file`` is pinned to.

    A local file is checked where it lies. A remote one is downloaded into ``folder`` by one process, while
    the others wait: streamed beside its name, checked, renamed. A failure that may pass is tried again
    (`data.places.retry.persist`), and so is a content of another hash.

    Raises:
        BadFile: it cannot be had.
        ChangedFile: its content, or the ETag that it is pinned to, is another than the pin says.
    """
    if not file.is_remote:
        return check_local(file)
    target = fetched_path(file, folder)
    if not is_checked(target, file):
        with locked(target):
            if not is_checked(target, file):
                _download_pinned(file, target)
    return target


def remove(file: SourceFile, folder: Path) -> None:
    """Delete what `fetch` downloaded; a local source file is never touched."""
    if file.is_remote:
        fetched_path(file, folder).unlink(missing_ok=True)


def fetched_path(file: SourceFile, folder: Path) -> Path:
    """Where `fetch` puts a remote file: a name of its own for every location and content, with the ending
    that tells how it is compressed."""
    digest = hashlib.sha256(f"{file.location}\n{file.pin}".encode()).hexdigest()[:24]
    return folder / f"{digest}-{Path(file.name).name[-80:]}"


def fetch_unpinned(found: FoundFile, folder: Path) -> SourceFile:
    """Download a file for which no server vouches, and pin it to the sha256 of what came.

    Raises:
        BadFile: it cannot be had.
        ChangedFile: it changes while it is read.
    """
    before = etag_of(state_of_url(found.location))
    unpinned = SourceFile(found.name, found.location, found.kind, found.size, "etag:", 0)
    target = fetched_path(unpinned, folder)
    with locked(target):
        part = target.with_name(f".{target.name}.part")
        persist(lambda: _transfer(unpinned, part), found.location)
        if etag_of(state_of_url(found.location)) != before:
            part.unlink()
            raise ChangedFile(
                "changes while it is read", where=found.location, fix="wait until it is complete"
            )
        file = SourceFile(found.name, found.location, found.kind, found.size, pin_of(part), 0)
        _settle(part, fetched_path(file, folder))
    return file


def _download_pinned(file: SourceFile, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    differences: list[str] = []
    try:
        persist(lambda: _transfer(file, part, differences), file.location)
        if file.pin.startswith("etag:"):
            _check_state(file)
        _settle(part, target)
    except BadFile as error:
        # Damage differs from try to try; the same other content every time is another file.
        if len(differences) > 1 and len(set(differences)) == 1 and ":" in differences[0]:
            raise ChangedFile(f"has changed ({differences[0]})", where=file.location, fix=RESTORE) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _transfer(file: SourceFile, part: Path, differences: list[str] | None = None) -> None:
    part.unlink(missing_ok=True)
    system, path = open_filesystem(file.location)
    system.get_file(path, str(part))
    if difference := mismatch(part, file):
        if file.pin != "etag:":
            _check_state(file)
        if differences is not None:
            differences.append(difference)
        raise BrokenTransfer(difference)


def _check_state(file: SourceFile) -> None:
    """Refuse a file of which its server itself says that it is another one now."""
    info = state_of_url(file.location)
    kind = file.pin.partition(":")[0]
    now = f"etag:{etag_of(info)}" if kind == "etag" else vouched(file.location, info)
    size = info.get("size")
    same_pin = now is None or now.partition(":")[0] != kind or now == file.pin
    if not same_pin or size not in (None, file.size):
        difference = f"{size} bytes in place of {file.size}" if same_pin else f"{now} in place of {file.pin}"
        raise ChangedFile(f"has changed ({difference})", where=file.location, fix=RESTORE)


def _settle(part: Path, target: Path) -> None:
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(part, target)
    fsync_dir(target.parent)
