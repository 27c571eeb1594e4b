"""From a run's data config to its folder in the cache: made once, found again by what defines it.

In prepared mode it holds every tokenized row, in streaming mode those that are held out; in both the
tokenizer and the manifest, which is written last.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from base.errors import UmbelError
from configs.schema import Data, RunConfig
from data.files import OpenSource, Reading, SourceFile
from data.folders import cache_folder, locked
from data.manifest import NAME, Manifest, check_same_settings, definition_of, folder_name
from data.prepared import Prepared, open_prepared
from data.report import Report, silent
from data.rows.make import Making
from data.sources import FETCHED, key_of, locate, open_sources, sources_of
from data.tokens.choose_tokenizer import choose_tokenizer
from data.tokens.pretrained import tokenizer_source
from data.tokens.tokenizer import TextTokenizer, load_tokenizer

__all__ = ["cache_folder", "choose_tokenizer", "locked", "open_from_manifest", "prepare", "prepare_run"]

Say = Callable[[str], None]


def prepare(
    data: Data,
    *,
    pretrained: str | None = None,
    say: Say = lambda _: None,
    report: Report = silent,
    began_with: Manifest | None = None,
    workers: int | None = None,
) -> Prepared:
    """Make a run's data folder, or find it already made.

    Interrupted work goes on where it was; of two processes one works and the other waits.

    Args:
        pretrained: a local model folder, whose tokenizer is taken when ``data.tokenizer.path`` is None;
            without either a tokenizer is trained on the data's train split.
        say: told what happens, in a sentence.
        report: told how far the work is.
        began_with: the manifest of a run that goes on. In streaming mode its sources are then neither listed
            nor read, where this cache still has the folder: each file is checked when it is fetched.
        workers: processes; None is one per core.

    Raises:
        UmbelError: any fault in the sources or the tokenizer, too little text for one row, nothing to
            learn in the rows, a cache folder that cannot be written, or other settings than a run began with.
    """
    cache = cache_folder(data)
    _check_packing(data)
    try:
        if began_with is not None and data.mode == "streaming":
            check_same_settings(began_with, data, _given_tokenizer(data, pretrained, began_with))
            if (_folder(cache, began_with) / NAME).is_file():
                return open_prepared(_folder(cache, began_with), report)
        sources = open_sources(data, cache, say)
        tokenizer = choose_tokenizer(data, sources, cache, pretrained, say)
        manifest = definition_of(data, sources, tokenizer)
        folder = _folder(cache, manifest)
        # Looked for first without the lock: a finished folder may be on a read-only file system.
        if not (folder / NAME).is_file():
            with locked(folder, say):
                if not (folder / NAME).is_file():
                    Making(folder, cache / FETCHED, data, sources, tokenizer, report).make(manifest, workers)
        return open_prepared(folder, report)
    except BrokenPipeError:
        raise  # whoever listened to ``say`` is gone
    except OSError as error:
        where = str(error.filename or cache)
        fix = "free space there, or set data.cache_dir"
        raise UmbelError(f"cannot be written ({error.strerror})", where=where, fix=fix) from error


def prepare_run(
    config: RunConfig,
    say: Say = lambda _: None,
    report: Report = silent,
    began_with: Manifest | None = None,
) -> Prepared:
    """`prepare` for a whole run: a pretrained model brings its tokenizer."""
    pretrained = tokenizer_source(config.model)
    return prepare(config.data, pretrained=pretrained, say=say, report=report, began_with=began_with)


def open_from_manifest(data: Data, manifest: Manifest) -> dict[str, OpenSource]:
    """The sources as a manifest knows them, where the config says they lie. Nothing is listed or read."""
    opened = {}
    for name, source in sources_of(data).items():
        known = manifest["sources"][name]
        files = tuple(
            SourceFile.of(entry, locate(source, entry["name"], known["revision"])) for entry in known["files"]
        )
        reading = Reading(
            known["format"],
            known["field"],
            known["template"],
            known["part"],
            tuple(known["filters"]["columns"]),
        )
        opened[name] = OpenSource(
            name, key_of(data, name), reading, files, tuple(known["skipped"]), known["revision"]
        )
    return opened


def _check_packing(data: Data) -> None:
    if data.mode == "streaming" and data.packing == "best_fit":
        fix = "choose data.packing=concat or none, or data.mode=prepared"
        raise UmbelError("best_fit looks at many documents at once", where="data.packing", fix=fix)


def _given_tokenizer(data: Data, pretrained: str | None, manifest: Manifest) -> TextTokenizer | None:
    given = data.tokenizer.path or pretrained
    if not given:
        return None
    chats = any(source["format"] == "messages" for source in manifest["sources"].values())
    return load_tokenizer(given).for_chats() if chats else load_tokenizer(given)


def _folder(cache: Path, manifest: Manifest) -> Path:
    return cache / str(manifest["mode"]) / folder_name(manifest)
