"""Folders of weights: Transformers' ``save_pretrained``, and Accelerate's ``save_state`` with its optimizer.

The files' names: accelerate/checkpointing.py, ``save_accelerator_state``; transformers/trainer.py.
"""

from __future__ import annotations

from pathlib import Path

from base.errors import UmbelError
from checkpoint.format import Damaged
from checkpoint.strict import parse_json, read_plain
from train.importing.indexed import Expected, numbered
from train.importing.pickles import Opened
from train.importing.source import Source
from train.importing.stored import Parts, Stored, tensors_of

WEIGHTS, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
OPTIMIZERS = ("optimizer.bin", "optimizer.pt")
_MAX_INDEX = 64 << 20


def optimizer_file(folder: Path) -> Path | None:
    """The one optimizer that an Accelerate or a Trainer folder holds.

    Raises:
        UmbelError: it holds several.
    """
    if (folder / "optimizer_1.bin").exists():
        raise UmbelError("holds several optimizers", where=str(folder), fix="a run has one")
    return next((folder / name for name in OPTIMIZERS if (folder / name).is_file()), None)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, one or the shards of its index; none where there are none.

    Raises:
        Damaged: the index is none, or names what is not beside it.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    index = parse_json(read_plain(folder / INDEX, _MAX_INDEX), str(folder / INDEX))
    shards = sorted(set(index["weight_map"].values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise Damaged(f"names {shard!r}, which is not beside it", where=str(folder / INDEX))
    return [folder / shard for shard in shards]


def read_weights(files: list[Path]) -> Source:
    """A Transformers folder: weights alone."""
    return Source(kind="Transformers weights", files=files, step=0, weights=_named(files))


def read_state(folder: Path, opened: Opened, expected: Expected) -> Source:
    """An Accelerate or Trainer folder: weights, and AdamW's state by number."""
    weights = weight_files(folder)
    named = _named(weights) if weights else _unpickled(opened)
    trainer = folder / "trainer_state.json"
    steps = None
    if trainer.is_file():
        steps = int(parse_json(read_plain(trainer, _MAX_INDEX), str(trainer))["global_step"])
    file = opened.files[-1]
    groups, moments = numbered(file.facts, file, expected, named, steps or 0)
    return Source(
        kind="Trainer checkpoint" if steps is not None else "Accelerate state",
        files=[*weights, *(each.path for each in opened.files)],
        step=steps,
        weights=named,
        moments=moments,
        groups=groups,
        confined=opened.confined,
    )


def _named(files: list[Path]) -> dict[str, Parts]:
    found: dict[str, Stored] = {}
    for file in files:
        found |= tensors_of(file)
    return {name: Parts.whole(stored) for name, stored in found.items()}


def _unpickled(opened: Opened) -> dict[str, Parts]:
    file = opened.files[0]
    return {name: Parts.whole(file.tensor(each)) for name, each in file.facts.items()}
