"""Making a run out of what another trainer saved."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from base.errors import UmbelError
from base.files import fsync_dir, sha256_file
from checkpoint.writer import commit, write_share
from configs.batch import sequences_at
from configs.schema import RunConfig
from data.stream import BatchStream
from record.events import record_event
from record.folder import RunFolder
from record.identity import run_id
from record.lock import RunLock
from train.architecture import check_shape
from train.base_model import describe_base
from train.distributed import World
from train.facts import config_fingerprint, hyperparameters, order_facts, software, tied
from train.importing.compare import check_counters, differences
from train.importing.find import open_source
from train.importing.indexed import Expected
from train.importing.match import match
from train.importing.source import Source
from train.importing.write import check_base, fragments
from train.model import meta_model
from train.parameters import parameter_groups
from train.portable import stored_shapes, stores_frozen
from train.run_data import open_data, open_stream

ALONE = World(rank=0, size=1, device=torch.device("cpu"), control=None)
PICKLES = "pickles"
"""Room in a run that grows for what its pickles hold, as safetensors."""


class Found(NamedTuple):
    """A checkpoint that fits a run.

    Args:
        notes: in what the run will go on otherwise, a line each.
    """

    source: Source
    model: torch.nn.Module
    step: int
    notes: list[str]


@contextlib.contextmanager
def growing(final: RunFolder) -> Iterator[RunFolder]:
    """A new run, under a hidden name until the block ends well: it is there whole, or not at all.

    Raises:
        UmbelError: a run of its name is there, or grows in another process.
    """
    if os.path.lexists(final.path):
        raise UmbelError("is there already", where=str(final.path), fix="set run.name to a new name")
    hidden = RunFolder(final.path.with_name(f".{final.path.name}.importing"))
    with RunLock(hidden.create(), "launch"):
        try:
            _empty(hidden)
            yield hidden.create()
            shutil.rmtree(hidden.path / PICKLES)
            os.rename(hidden.path, final.path)
            fsync_dir(final.path.parent)
        except BaseException:
            shutil.rmtree(hidden.path, ignore_errors=True)
            raise


def find(config: RunConfig, place: Path, folder: RunFolder, *, step: int | None, tag: str | None) -> Found:
    """Read a checkpoint's files and see whether it is one of this run's model. No tensor is read yet.

    Args:
        folder: of the run that grows.
        step: where the run goes on, if not where the files say.
        tag: which of DeepSpeed's checkpoints, if not the newest.

    Raises:
        UmbelError: it is of no known kind, damaged, of another model, or without a step.
    """
    check_shape(config)
    model = meta_model(config.model)
    room = folder.path / PICKLES
    room.mkdir()
    source = open_source(place, tag, Expected(model, config.optimizer), room)
    source = match(source, model, base=not stores_frozen(config.model), where=str(place))
    check_counters(source, config, model)
    check_base(source, model, config, str(place))
    step = _step(source, step, config, place)
    return Found(source, model, step, differences(source, config, model, step))


def install(found: Found, config: RunConfig, folder: RunFolder, place: Path) -> None:
    """Write the run's first checkpoint, on its data, and record where it comes from.

    Raises:
        UmbelError: a fault in the data, or no room.
    """
    source, model = found.source, found.model
    stream = open_stream(config, open_data(config, folder, ALONE), folder)
    hashes = _hashes(source.files, place)
    with_frozen = stores_frozen(config.model)
    pieces = list(fragments(source, model, with_frozen))
    total, save_id = sum(piece.nbytes for piece in pieces), secrets.token_hex(4)
    checkpoints, shapes = folder.checkpoints, stored_shapes(model, with_frozen)
    write_share(checkpoints, found.step, save_id, 0, 1, pieces, shapes, total)
    facts = _facts(found, config, run_id(folder), stream)
    facts["extra"]["imported"] = {"kind": source.kind, "files": hashes}
    commit(checkpoints, found.step, save_id, 1, facts)
    record_event(
        folder,
        "imported",
        source=str(place),
        kind=source.kind,
        step=found.step,
        files=hashes,
        parameters=len(shapes),
        moments=bool(source.moments),
        bytes=total,
        tokens="sequences × data.sequence_length",
        confined=source.confined,
        notes=found.notes,
    )


def _step(source: Source, step: int | None, config: RunConfig, place: Path) -> int:
    found = source.step if step is None else step
    if found is None:
        fix = "say --step: how many optimizer steps it has made"
        raise UmbelError(f"{source.kind} does not say its step", where=str(place), fix=fix)
    if config.data.mode == "streaming" and found:
        raise UmbelError(
            "a stream begins at its beginning: where it would be after other steps is known by reading it",
            where=f"step {found}",
            fix="set data.mode=prepared, or say --step 0",
        )
    return found


def _facts(found: Found, config: RunConfig, run: str, stream: BatchStream) -> dict[str, Any]:
    sequences = sequences_at(config.schedule, found.step)
    base = describe_base(config.model)
    return {
        "run_id": run,
        "run_name": config.run.name,
        "step": found.step,
        "sequences": sequences,
        "tokens": sequences * config.data.sequence_length,
        "parent": None,
        "config_fingerprint": config_fingerprint(config),
        "data_fingerprint": stream.prepared.fingerprint,
        "groups": _groups(found, config),
        "tied": tied(found.model, stores_frozen(config.model)),
        "loss_scaler": found.source.loss_scaler,
        "software": software(),
        "topology": {"world_size": 1, "zero_stage": 0, "engine": "torch"},
        "extra": {
            "institution": config.cluster.institution,
            "order": order_facts(stream.order, sequences),
            **({"base": base} if base else {}),
        },
    }


def _groups(found: Found, config: RunConfig) -> list[dict[str, Any]]:
    """The source's own; where it has weights alone those of the run, not yet updated."""
    if found.source.groups:
        return [
            {"names": group.names, "step": group.step, "hyperparameters": hyperparameters(group.rule)}
            for group in found.source.groups
        ]
    optimizer = config.optimizer
    rule = {"betas": optimizer.betas, "eps": optimizer.eps}
    return [
        {
            "names": group["names"],
            "step": 0,
            "hyperparameters": rule | {"weight_decay": group["weight_decay"]},
        }
        for group in parameter_groups(found.model, optimizer)
    ]


def _hashes(files: list[Path], place: Path) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        hashes = pool.map(sha256_file, files)
        return {file.relative_to(place).as_posix(): each for file, each in zip(files, hashes, strict=True)}


def _empty(folder: RunFolder) -> None:
    """Remove what a killed import left, all but the lock that is held."""
    for path in folder.path.iterdir():
        if path == folder.control:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
