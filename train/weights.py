"""A run's model without its engine: a plain PyTorch model, filled from a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from base.errors import UmbelError
from base.files import read_json
from checkpoint.folders import steps
from checkpoint.reader import StateReader, latest
from checkpoint.verify import Mode, verify
from configs.compose import load
from configs.schema import RunConfig
from data.manifest import Manifest
from data.tokens.tokenizer import TextTokenizer, load_tokenizer
from record.folder import RunFolder
from train.architecture import model_config
from train.base_model import check_base, describe_base
from train.engine import round_weights
from train.facts import check_parameters
from train.model import build_model, build_skeleton
from train.portable import read_buffers, read_into
from train.position import Position
from train.prompt import trained_on_chats
from train.state import FROZEN, MASTER


class RunModel(NamedTuple):
    """A run's model as one of its checkpoints holds it.

    ``model`` is in fp32 on the CPU and in eval mode, wrapped by peft where the run trains adapters.
    """

    model: PreTrainedModel
    config: RunConfig
    folder: RunFolder
    position: Position
    run_id: str

    @property
    def tokenizer(self) -> TextTokenizer:
        """The run's own copy of its tokenizer: the cache of prepared data may be gone."""
        return load_tokenizer(self.folder.path / "tokenizer")

    @property
    def data(self) -> Manifest:
        """What the run was trained on."""
        return read_json(self.folder.path / "data.json")

    @property
    def chats(self) -> bool:
        """Whether the run was trained on chats."""
        return trained_on_chats(self.data)


def load_model(run: str | Path, step: int | None = None) -> RunModel:
    """Rebuild a run's model from its newest whole checkpoint, or from that of ``step``.

    Args:
        run: name or folder of a run.

    Raises:
        UmbelError: no such run, no such checkpoint (those that exist are listed), a damaged one, or a
            pretrained base that has changed since.
    """
    folder = RunFolder.find(run)
    config = load(folder.run_yaml)
    checkpoint = _checkpoint(folder, step, config.checkpoint.verify)
    with StateReader(checkpoint) as reader:
        manifest = reader.manifest
        if config.model.lora:
            check_base(manifest["extra"].get("base"), describe_base(config.model))
        model = _untrained(config)
        check_parameters(manifest, model, checkpoint)
        with torch.no_grad():
            fill(model, reader)
    position = Position(manifest["step"], manifest["sequences"], manifest["tokens"])
    return RunModel(model.eval(), config, folder, position, manifest["run_id"])


def _checkpoint(folder: RunFolder, step: int | None, mode: Mode) -> Path:
    known = steps(folder.checkpoints)
    if step is None:
        found = latest(folder.checkpoints, verify=mode, warn=lambda text: print(text, file=sys.stderr))
        if found is None:
            fix = "let it train until its first save"
            raise UmbelError("has no whole checkpoint", where=str(folder.path), fix=fix)
        return found
    if step not in known:
        there = ", ".join(map(str, sorted(known))) or "none"
        raise UmbelError(
            f"has no checkpoint of step {step}", where=str(folder.path), fix=f"there are: {there}"
        )
    verify(known[step], mode)
    return known[step]


def _untrained(config: RunConfig) -> PreTrainedModel:
    """The model with its frozen weights as they were trained with; what trains may hold anything."""
    settings = dataclasses.replace(config.model, activation_checkpointing=False, compile=False)
    if settings.lora is None:
        model = build_skeleton(settings)
    else:
        model = build_model(settings, config.run.seed)
        if settings.precision == "bf16":
            round_weights(model)
    # Training has no use for a cache, generating does.
    model.config.use_cache = getattr(model_config(settings), "use_cache", True)
    return model


def fill(model: torch.nn.Module, reader: StateReader) -> None:
    """Read the stored parameters and persistent buffers into a model in fp32; what a base gives stays."""
    frozen = set(reader.names(FROZEN))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or name in frozen:
            read_into(reader, name, FROZEN if name in frozen else MASTER, 0, parameter)
    read_buffers(reader, model)
