"""ZeRO's partitions in DeepSpeed's files: where each parameter's elements lie, and what else is there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from base.errors import UmbelError
from checkpoint.format import Damaged
from checkpoint.schema import is_shape
from checkpoint.strict import is_count
from train.importing.pickles import Opened, Unpickled
from train.importing.source import MOMENTS, Group, Source, check_adam, rule_of, step_of
from train.importing.stored import Parts, Piece, Stored
from train.state import MASTER

Shapes = dict[str, tuple[int, ...]]
_SCALER = {"cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"}


class Flat(NamedTuple):
    """One process's flat partition of a group (at stage 3 of a sub-group): master weights and moments."""

    group: int
    tensors: dict[str, Stored]
    state: Mapping[str, Any]


class Cut(NamedTuple):
    """Elements [start, start + numel) of a flat partition, which are the next ones of a parameter."""

    name: str
    start: int
    numel: int


def read(opened: Opened, models: Sequence[Unpickled], optimizers: Sequence[Unpickled]) -> Source:
    """Stages 1 to 3, of the model's files (one, or at stage 3 one of each process) and the optimizer's."""
    first, shapes = models[0], shapes_of(models[0])
    stage3 = "fp32_flat_groups" in optimizers[0].facts["optimizer_state_dict"]
    pieces: dict[str, dict[str, list[Piece]]] = {}
    flats: list[list[Flat]] = []
    for rank, file in enumerate(optimizers):
        saved = file.facts["optimizer_state_dict"]
        _check_count(saved, len(optimizers), file)
        flats.append(list(_stage_3_flats(saved, file) if stage3 else _stage_1_flats(saved, file)))
        cuts = _stage_3_cuts(shapes, rank, len(optimizers)) if stage3 else _stage_1_cuts(saved)
        for flat, members in zip(flats[-1], cuts, strict=True):
            for cut in members:
                for kind, tensor in flat.tensors.items():
                    found = pieces.setdefault(kind, {}).setdefault(cut.name, [])
                    found.append(Piece(tensor, cut.start, cut.numel))
    every = {name: shape for group in shapes for name, shape in group.items()}
    whole = {
        kind: {name: Parts(every[name], cut) for name, cut in found.items()} for kind, found in pieces.items()
    }
    saved = optimizers[0].facts["optimizer_state_dict"]
    frozen = _frozen(models) if stage3 else others(first, every)
    return Source(
        kind=f"DeepSpeed ZeRO stage {_stage(saved, stage3)}, {len(optimizers)} processes",
        files=[file.path for file in opened.files],
        step=first.facts["global_steps"],
        samples=first.facts["global_samples"],
        weights=frozen | whole.pop(MASTER),
        moments=whole,
        groups=_groups(saved, shapes, flats[0], steps_of(first.facts)),
        buffers=buffers_of(first),
        tied=ties(first),
        loss_scaler=loss_scaler(saved.get("loss_scaler")),
        confined=opened.confined,
    )


def _stage_1_flats(saved: Mapping[str, Any], file: Unpickled) -> Iterator[Flat]:
    """Stages 1 and 2 and BF16_Optimizer: each group is one flat tensor, cut evenly over the processes."""
    optimizer = saved["base_optimizer_state"]
    if not isinstance(optimizer, dict):
        fix = "save it with elastic_checkpoint off"
        raise UmbelError("is an elastic checkpoint of old", where=str(file.path), fix=fix)
    for index, reference in enumerate(saved["single_partition_of_fp32_groups"]):
        (number,) = optimizer["param_groups"][index]["params"]
        yield _flat(index, reference, optimizer["state"].get(str(number), {}), file)


def _stage_1_cuts(saved: Mapping[str, Any]) -> list[list[Cut]]:
    mappings = saved["param_slice_mappings"]
    if not all(is_count(at["start"]) and is_count(at["numel"]) for each in mappings for at in each.values()):
        raise ValueError("a slice begins nowhere")
    return [[Cut(name, at["start"], at["numel"]) for name, at in each.items()] for each in mappings]


def _stage_3_flats(saved: Mapping[str, Any], file: Unpickled) -> Iterator[Flat]:
    """Stage 3: each parameter is cut evenly; a group's parts lie in one or more flat sub-groups."""
    optimizer = saved["optimizer_state_dict"]
    owners = [
        (index, number) for index, group in enumerate(optimizer["param_groups"]) for number in group["params"]
    ]
    for (index, number), reference in zip(owners, saved["fp32_flat_groups"], strict=True):
        yield _flat(index, reference, optimizer["state"].get(str(number), {}), file)


def _stage_3_cuts(shapes: Sequence[Shapes], rank: int, world_size: int) -> Iterator[list[Cut]]:
    for group in shapes:
        cuts, cursor = [], 0
        for name, shape in group.items():
            part, numel = _part(math.prod(shape), rank, world_size)
            cuts.append(Cut(name, cursor, numel))
            cursor += part
        yield cuts


def _part(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """Length of each process's part, the last ones padded, and how much of this one's is the parameter."""
    part = -(-numel // world_size)
    return part, max(0, min(part, numel - rank * part))


def _flat(group: int, reference: Any, state: Mapping[str, Any], file: Unpickled) -> Flat:
    check_adam(state, file.path)
    tensors = {kind: file.tensor(state[kind]) for kind in MOMENTS if kind in state}
    return Flat(group, {MASTER: file.tensor(reference), **tensors}, state)


def _groups(
    saved: Mapping[str, Any], shapes: Sequence[Shapes], flats: Sequence[Flat], steps: int
) -> list[Group]:
    inner = saved.get("base_optimizer_state") or saved["optimizer_state_dict"]
    made = []
    for index, group in enumerate(inner["param_groups"]):
        own = [number for number, flat in enumerate(flats) if flat.group == index]
        names = [name for number in own for name in shapes[number]]
        states = [flats[number].state for number in own if flats[number].state]
        made.append(
            Group(names=names, step=step_of(states, group, steps if states else 0), rule=rule_of(group))
        )
    return made


def _frozen(models: Sequence[Unpickled]) -> dict[str, Parts]:
    """Stage 3: each process's file holds its part of every frozen parameter."""
    shapes = models[0].facts.get("frozen_param_shapes") or {}
    found = {}
    for name, shape in shapes.items():
        parts = [file.tensor((file.facts.get("frozen_param_fragments") or {}).get(name)) for file in models]
        sizes = [_part(math.prod(shape), rank, len(models))[1] for rank in range(len(models))]
        pieces = [Piece(part, 0, size) for part, size in zip(parts, sizes, strict=True)]
        found[name] = Parts(tuple(shape), pieces)
    return found


def shapes_of(file: Unpickled) -> list[Shapes]:
    """Shapes by name of each flat group, in the order of its elements."""
    groups = file.facts.get("param_shapes")
    if not isinstance(groups, list) or not all(is_shape(each) for group in groups for each in group.values()):
        raise Damaged("says nothing of its parameters' shapes", where=str(file.path))
    return [{name: tuple(shape) for name, shape in group.items()} for group in groups]


def module_of(file: Unpickled) -> dict[str, Parts]:
    """The model's state dict."""
    return {name: Parts.whole(file.tensor(each)) for name, each in file.facts["module"].items()}


def buffers_of(file: Unpickled) -> dict[str, Parts]:
    """Those of the model's buffers that are in its state dict."""
    wanted = set(file.facts.get("buffer_names") or ())
    return {name: parts for name, parts in module_of(file).items() if name in wanted}


def others(file: Unpickled, trained: Iterable[str]) -> dict[str, Parts]:
    """What is in the state dict and neither trained, nor a buffer, nor another name of something."""
    left_out = {*trained, *(file.facts.get("buffer_names") or ()), *ties(file)}
    return {name: parts for name, parts in module_of(file).items() if name not in left_out}


def ties(file: Unpickled) -> dict[str, str]:
    """Further names of parameters, each with the first: as DeepSpeed tells them, or names of one tensor."""
    first: dict[int, str] = {}
    same = {}
    for name, each in file.facts["module"].items():
        owner = first.setdefault(each["$tensor"], name)
        if owner != name and math.prod(file.tensor(each).shape):
            same[name] = owner
    return same | (file.facts.get("shared_params") or {})


def steps_of(facts: Mapping[str, Any]) -> int:
    """Updates that were made: steps, less those that fp16 skipped."""
    return int(facts["global_steps"]) - int(facts.get("skipped_steps") or 0)


def loss_scaler(saved: Any) -> dict[str, float] | None:
    """What an fp16 run's scaler stood at; None where there was no scaling to speak of."""
    if not isinstance(saved, dict) or saved.get("cur_scale", 1.0) == 1.0:
        return None
    return {key: saved[key] for key in sorted(_SCALER & saved.keys()) if isinstance(saved[key], int | float)}


def _check_count(saved: Mapping[str, Any], files: int, file: Unpickled) -> None:
    """Refuse partitions over other groups of processes than all of them (MiCS, experts)."""
    counts = saved.get("partition_count", files)
    if set(counts if isinstance(counts, list) else [counts]) != {files}:
        raise UmbelError(f"is cut into {counts} parts, in {files} files", where=str(file.path))


def _stage(saved: Mapping[str, Any], stage3: bool) -> int:
    told = saved.get("zero_stage")
    if isinstance(told, dict):
        return int(told["arguments"][0])
    return told if isinstance(told, int) else 3 if stage3 else 1
