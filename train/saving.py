"""Between a live engine and the portable state: what is saved, where, and how it comes back."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from base.errors import UmbelError
from base.files import sha256_json
from checkpoint import manifest as manifests
from checkpoint.format import BUFFER, step_name
from checkpoint.reader import StateReader, latest
from checkpoint.retention import prune
from checkpoint.writer import Fragment, clean, commit, discard, write_share
from configs.batch import sequences_at
from configs.compose import is_defining
from configs.plain import flatten, to_dict
from configs.schema import RunConfig, Schedule
from record.events import record_event
from record.folder import RunFolder
from train.base_model import check_base, describe_base
from train.distributed import World
from train.engine import Engine
from train.parameters import parameter_shape
from train.state import persistent_buffers

_SAFETENSORS = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_HYPERPARAMETERS = ("betas", "eps", "weight_decay")


@dataclass(frozen=True)
class Position:
    """Where a run is: all of its state that is not a tensor."""

    step: int = 0
    sequences: int = 0
    tokens: int = 0  # target tokens learned from

    def after(self, sequences: int, tokens: int) -> Position:
        """One step later."""
        return Position(self.step + 1, self.sequences + sequences, self.tokens + tokens)


class Saver:
    """Saves and restores one run's portable state.

    Args:
        run_id: of `record.identity`; a checkpoint of another run is refused.
        data_fingerprint: of the prepared data; a checkpoint over other data is refused.
    """

    def __init__(
        self, config: RunConfig, world: World, folder: RunFolder, run_id: str, data_fingerprint: str
    ) -> None:
        self.config, self.world, self.folder = config, world, folder
        self.run_id, self.data_fingerprint = run_id, data_fingerprint
        self.base = describe_base(config.model) if world.is_first else None
        self.parent: str | None = None

    def save(self, engine: Engine, position: Position) -> None:
        """Save collectively; every process writes what it owns, and rank 0 makes it a checkpoint.

        Raises:
            UmbelError: the disk is full or unwritable; earlier checkpoints stay.
        """
        began = time.perf_counter()
        checkpoints, world = self.folder.checkpoints, self.world
        try:
            self._together(lambda: self._write_share(engine, position.step))
        except UmbelError:
            if world.is_first:
                discard(checkpoints, position.step)
            raise
        self._together(lambda: self._commit(engine, position, began) if world.is_first else None)

    def find(self) -> Path | None:
        """The checkpoint to go on from; clears what a killed save left. Rank 0 looks, all hear."""
        step = 0
        if self.world.is_first:
            clean(self.folder.checkpoints)
            found = latest(
                self.folder.checkpoints,
                verify=self.config.checkpoint.verify,
                run_id=self.run_id,
                warn=lambda text: record_event(self.folder, "warning", text=text),
            )
            step = StateReader(found).manifest["step"] if found else 0
        step = self.world.first(step)
        return self.folder.checkpoints / step_name(step) if step else None

    def load(self, engine: Engine, checkpoint: Path) -> Position:
        """Restore a live engine from any topology's checkpoint.

        Raises:
            UmbelError: the checkpoint is of another model or base, or of other data.
        """
        with StateReader(checkpoint, run_id=self.run_id) as reader:
            manifest = reader.manifest
            self._check(manifest, checkpoint)
            self._together(lambda: check_base(manifest["extra"].get("base"), self.base))
            check_parameters(manifest, engine.model, checkpoint)
            check_position(manifest, self.config.schedule, checkpoint)
            for piece in engine.state.held():
                for kind, view in piece.views.items():
                    read_into(reader, piece.parameter, kind, piece.start, view)
            read_buffers(reader, engine.model)
        engine.state.loaded(_group_steps(engine, manifest["groups"]))
        self.parent = manifests.digest(checkpoint)
        return Position(manifest["step"], manifest["sequences"], manifest["tokens"])

    def _together(self, work: Any) -> None:
        """Do a part on every process; if it fails on one, it has failed on all, and none waits in vain."""
        error: Exception | None = None
        try:
            work()
        except Exception as caught:
            error = caught
        failed = self.world.sum([int(error is not None)])[0]
        if error is not None:
            raise error
        if failed:
            raise PeerFailed("another process failed", where=str(self.folder.checkpoints))

    def _write_share(self, engine: Engine, step: int) -> None:
        shapes, fragments = trainable_shapes(engine.model), self._fragments(engine)
        write_share(self.folder.checkpoints, step, self.world.rank, self.world.size, fragments, shapes)

    def _fragments(self, engine: Engine) -> Iterator[Fragment]:
        for piece in engine.state.owned():
            for kind, view in piece.views.items():
                yield Fragment(piece.parameter, kind, piece.start, host_bytes(view), "F32", tuple(view.shape))
        if self.world.is_first:
            for name, buffer in persistent_buffers(engine.model):
                dtype = _SAFETENSORS[buffer.dtype]
                yield Fragment(name, BUFFER, 0, host_bytes(buffer), dtype, tuple(buffer.shape))

    def _commit(self, engine: Engine, position: Position, began: float) -> None:
        facts = self._facts(engine, position)
        made = commit(self.folder.checkpoints, position.step, self.world.size, facts)
        self.parent = manifests.digest(made)
        size = sum(file.stat().st_size for file in made.iterdir())
        seconds = round(time.perf_counter() - began, 3)
        record_event(self.folder, "checkpoint", step=position.step, seconds=seconds, bytes=size)
        prune(self.folder.checkpoints, self.config.checkpoint.keep_last)

    def _facts(self, engine: Engine, position: Position) -> dict[str, Any]:
        parallelism = self.config.parallelism
        return {
            "run_id": self.run_id,
            "run_name": self.config.run.name,
            **asdict(position),
            "parent": self.parent,
            "config_fingerprint": config_fingerprint(self.config),
            "data_fingerprint": self.data_fingerprint,
            "groups": _groups(engine),
            "software": software(),
            "topology": {
                "world_size": self.world.size,
                "zero_stage": parallelism.zero_stage,
                "engine": parallelism.engine,
            },
            "extra": {
                "institution": self.config.cluster.institution,
                **({"base": self.base} if self.base else {}),
            },
        }

    def _check(self, manifest: dict[str, Any], checkpoint: Path) -> None:
        if manifest["data_fingerprint"] != self.data_fingerprint:
            raise UmbelError(
                "was trained on other data than is prepared now",
                where=str(checkpoint),
                fix="bring back the data, or start a new run under another run.name",
            )


def check_position(manifest: dict[str, Any], schedule: Schedule, checkpoint: Path) -> None:
    """Refuse a batch schedule under which other sequences would have been seen by now.

    Raises:
        UmbelError: going on would skip or repeat data.
    """
    expected = sequences_at(schedule, manifest["step"])
    if manifest["sequences"] != expected:
        raise UmbelError(
            f"has seen {manifest['sequences']} sequences in {manifest['step']} steps, "
            f"with this batch it would be {expected}",
            where=str(checkpoint),
            fix="keep schedule.global_batch and schedule.batch_ramp: another batch is another run",
        )


class PeerFailed(UmbelError):
    """A step that all processes take together failed on another one, which says why."""


def config_fingerprint(config: RunConfig) -> str:
    """sha256 over the defining keys."""
    return sha256_json({key: value for key, value in flatten(to_dict(config)).items() if is_defining(key)})


def check_parameters(manifest: dict[str, Any], model: torch.nn.Module, checkpoint: Path) -> None:
    """Refuse a checkpoint whose trained parameters are not those of the model.

    Raises:
        UmbelError: names the first one that differs.
    """
    ours, theirs = trainable_shapes(model), manifest["parameters"]
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UmbelError(
                f"holds {name} as {theirs.get(name, 'nothing')}, the model has {ours.get(name, 'nothing')}",
                where=str(checkpoint),
            )


def trainable_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {
        name: list(parameter_shape(parameter))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def read_into(reader: StateReader, name: str, kind: str, start: int, target: torch.Tensor) -> None:
    """Fill a tensor on any device with stored elements, through one host buffer of its size."""
    raw = reader.read(name, kind, start, start + target.numel())
    target.copy_(torch.from_numpy(raw).view(target.dtype).view(target.shape))


def read_buffers(reader: StateReader, model: torch.nn.Module) -> None:
    """Fill the model's persistent buffers."""
    for name, buffer in persistent_buffers(model):
        read_into(reader, name, BUFFER, 0, buffer)


def host_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's raw bytes in host memory."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def software() -> dict[str, str]:
    """Versions a later reader may want to know."""
    packages = ("umbel", "torch", "deepspeed", "accelerate", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _groups(engine: Engine) -> list[dict[str, Any]]:
    steps = engine.state.group_steps()
    return [
        {
            "names": group["names"],
            "step": step,
            "hyperparameters": {key: group[key] for key in _HYPERPARAMETERS},
        }
        for group, step in zip(engine.optimizer.param_groups, steps, strict=True)
    ]


def _group_steps(engine: Engine, saved: list[dict[str, Any]]) -> list[int]:
    """The saved step counter of each live group, matched by parameter: groups may be cut differently."""
    by_name = {name: group["step"] for group in saved for name in group["names"]}
    return [by_name[group["names"][0]] for group in engine.optimizer.param_groups]
