"""Which pretrained weights a run stands on, exactly: their files by sha256."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from base.errors import UmbelError
from base.files import read_json, sha256_file
from configs.schema import Model
from train.architecture import pretrained_source

Base = dict[str, Any]
"""``{"name": …, "revision": commit or None, "files": {name: sha256}}``"""


def describe_base(model: Model) -> Base | None:
    """What a checkpoint remembers of the run's pretrained model; None where it has none.

    Reads every weight file once. A hub model must be in the cache, where building it has put it.
    """
    if model.pretrained is None:
        return None
    folder, revision = _locate(model)
    files = _defining_files(folder)
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        hashes = list(pool.map(sha256_file, files))
    return {
        "name": model.pretrained,
        "revision": revision,
        "files": {file.name: digest for file, digest in zip(files, hashes, strict=True)},
    }


def check_base(saved: Mapping[str, Any] | None, present: Mapping[str, Any] | None) -> None:
    """Refuse to go on from another base than the run began with; where it lies may change.

    Raises:
        UmbelError: names the first file that differs.
    """
    if saved is None or present is None:
        return
    before, now = saved["files"], present["files"]
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            hashes = " and now ".join(files.get(name, "nothing")[:12] for files in (before, now))
            raise UmbelError(
                f"is not the file the run began with (sha256 was {hashes})",
                where=f"{present['name']}: {name}",
                fix="bring it back, or start a run under another run.name",
            )


def _locate(model: Model) -> tuple[Path, str | None]:
    """The base's folder, and for a hub model the commit that this folder holds."""
    source = pretrained_source(model)
    name, commit = source["pretrained_model_name_or_path"], source.get("revision")
    if commit is None:
        return Path(name), None
    return Path(str(cached_file(name, CONFIG_NAME, revision=commit))).parent, commit


def _defining_files(folder: Path) -> list[Path]:
    """The shape and the weights, as Transformers chooses them: one file, or the shards of its index."""
    names, index = [SAFE_WEIGHTS_NAME], folder / SAFE_WEIGHTS_INDEX_NAME
    if not (folder / SAFE_WEIGHTS_NAME).is_file() and index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
    return [folder / name for name in (CONFIG_NAME, *names) if (folder / name).is_file()]
