"""Files that a streamed run goes on without, since one of its starts could not read them."""

from __future__ import annotations

import contextlib

from base.errors import RunFailed, UmbelError
from base.files import read_json, write_json
from checkpoint import manifest as manifests
from checkpoint.folders import steps
from data.places.retry import BadFile
from data.stream import BatchStream
from record.folder import RunFolder

NAME = "files_left_out.json"


def files_left_out(folder: RunFolder) -> dict[str, list[str]]:
    """Their names, by source: those of the run folder, and those of its newest checkpoint, which may come
    from elsewhere. Every start reads them first, so that all processes leave out the same files from the
    same step on."""
    path = folder.path / NAME
    left_out = dict(read_json(path)) if path.exists() else {}
    for checkpoint in steps(folder.checkpoints).values():
        with contextlib.suppress(UmbelError):  # a damaged one is passed by, here as in loading
            saved = manifests.read(checkpoint)["extra"].get("left_out", {})
            return {
                name: sorted({*left_out.get(name, ()), *saved.get(name, ())})
                for name in left_out.keys() | saved
            }
    return left_out


def leave_out(stream: BatchStream, folder: RunFolder, error: BadFile) -> UmbelError:
    """What ends a start that cannot read a file: ``error``, or, where ``data.on_bad_file`` is skip, that the
    next start goes on without the file."""
    if stream.data.on_bad_file != "skip":
        return error
    for name, source in stream.opened.items():
        for file in source.files:
            if file.location == error.where:
                left_out = files_left_out(folder)
                left_out[name] = sorted({*left_out.get(name, ()), file.name})
                write_json(folder.path / NAME, left_out)
                return RunFailed(
                    f"cannot be read ({error.what}) and is left out from here on",
                    where=f"source {name}: {file.name}",
                    fix="resume the run: it goes on from its last checkpoint",
                )
    return error
