"""Checkpoints that DeepSpeed's ``save_checkpoint`` wrote, ZeRO stages 0 to 3.

Read from the files of DeepSpeed 0.19; what each holds is told in deepspeed/utils/zero_to_fp32.py and
deepspeed/checkpoint/ds_to_universal.py. DeepSpeed itself is not imported.
"""

from __future__ import annotations

import re
from pathlib import Path

from base.errors import UmbelError
from checkpoint.format import Damaged
from checkpoint.strict import is_count, read_plain
from train.importing import zero
from train.importing.indexed import Expected, numbered
from train.importing.pickles import Opened
from train.importing.source import Source
from train.importing.stored import Parts

LATEST = "latest"
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_00_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:(?:bf|fp)16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_SPLIT = re.compile(r"layer_\d+.*\.pt|.*mp_rank_(?!00)\d+.*\.pt|.*expert_\d+.*\.pt")


def is_deepspeed(folder: Path) -> bool:
    """Whether it is a folder of tags, or a tag's folder."""
    return (folder / LATEST).is_file() or any(map(_MODEL.fullmatch, names(folder)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def tag_folder(folder: Path, tag: str | None) -> Path:
    """The folder of ``tag``, or of the newest.

    Raises:
        UmbelError: there is none; says which there are.
    """
    if tag is None and not (folder / LATEST).is_file():
        return folder
    tag = tag or read_plain(folder / LATEST, 4096).decode("utf-8", "replace").strip()
    if tag not in names(folder) or not (folder / tag).is_dir():
        there = ", ".join(name for name in names(folder) if any(map(_MODEL.fullmatch, names(folder / name))))
        raise UmbelError(f"has no tag {tag!r}", where=str(folder), fix=f"--tag: there are {there or 'none'}")
    return folder / tag


def files_of(folder: Path) -> list[Path]:
    """A tag's files: the model's, then the optimizer's, each by rank.

    Raises:
        UmbelError: a rank's file is missing, or the model was split otherwise than by ZeRO.
    """
    if split := [name for name in names(folder) if _SPLIT.fullmatch(name)]:
        raise UmbelError(
            f"was saved with tensor, pipeline or expert parallelism ({split[0]})",
            where=str(folder),
            fix="only ZeRO's own partitions are read; import its weights alone, from a Transformers folder",
        )
    if (folder / "zero").is_dir():
        fix = "give the checkpoint it was made of"
        raise UmbelError("is a Universal Checkpoint, without its frozen weights", where=str(folder), fix=fix)
    found = [*_by_rank(folder, _MODEL), *_by_rank(folder, _OPTIMIZER)]
    if not found:
        raise UmbelError("holds no DeepSpeed checkpoint", where=str(folder))
    return found


def _by_rank(folder: Path, form: re.Pattern[str]) -> list[Path]:
    by_rank = {
        int(match[1] or 0): folder / match[0] for name in names(folder) if (match := form.fullmatch(name))
    }
    if missing := sorted(set(range(max(by_rank, default=-1) + 1)) - set(by_rank)):
        raise UmbelError(f"lacks a file of rank {missing[0]}", where=str(folder), fix="copy all of it here")
    return [by_rank[rank] for rank in sorted(by_rank)]


def read(opened: Opened, expected: Expected) -> Source:
    """What the files hold.

    Raises:
        UmbelError: it is not the whole of a checkpoint, or not of a form that is read.
    """
    models = [file for file in opened.files if _MODEL.fullmatch(file.path.name)]
    optimizers = [file for file in opened.files if _OPTIMIZER.fullmatch(file.path.name)]
    facts, first = models[0].facts, models[0]
    for key in ("global_steps", "global_samples", "dp_world_size"):
        if not is_count(facts.get(key)):
            raise Damaged(f"is no model state of DeepSpeed (no {key})", where=str(first.path))
    if optimizers and len(optimizers) != facts["dp_world_size"]:
        raise UmbelError(
            f"has the optimizer files of {len(optimizers)} processes, and {facts['dp_world_size']} saved it",
            where=str(first.path.parent),
            fix="copy all of it here",
        )
    return _stage_0(opened, expected) if not optimizers else zero.read(opened, models, optimizers)


def _stage_0(opened: Opened, expected: Expected) -> Source:
    """One file: the weights, and the optimizer's state by number. In bf16 and fp16, master copies besides."""
    file = opened.files[0]
    saved = file.facts.get("optimizer")
    if not isinstance(saved, dict):
        raise UmbelError("holds no optimizer state", where=str(file.path), fix="give a whole checkpoint")
    if "fp32_groups_flat" in saved:
        raise UmbelError(
            "keeps its master weights in one row, without their names",
            where=str(file.path),
            fix="save it with torch's AdamW, or at ZeRO stage 1",
        )
    inner = saved.get("optimizer_state_dict", saved)
    steps = zero.steps_of(file.facts)
    module = file.facts["module"]
    groups, moments = numbered(inner, file, expected, module, steps)
    trained = [name for group in groups for name in group.names]
    copies: dict[str, Parts] = {}
    if "fp32_groups" in saved:
        masters = [Parts.whole(file.tensor(each)) for group in saved["fp32_groups"] for each in group]
        copies = dict(zip(trained, masters, strict=True))
    return Source(
        kind=f"DeepSpeed stage 0, {file.facts['dp_world_size']} processes",
        files=[file.path],
        step=file.facts["global_steps"],
        samples=file.facts["global_samples"],
        weights=zero.others(file, copies) | copies,
        moments=moments,
        groups=groups,
        buffers=zero.buffers_of(file),
        tied=zero.ties(file),
        loss_scaler=zero.loss_scaler(saved),
        confined=opened.confined,
    )
