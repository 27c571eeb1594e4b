"""A run's model as a folder that Transformers, or peft, loads: the way out of Umbel."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedModel

from base.errors import UmbelError
from base.files import fsync_dir, write_text
from configs.schema import Model
from train.architecture import pretrained_source
from train.card import model_card
from train.prompt import end_ids, turn_marker
from train.quiet import quiet
from train.weights import RunModel, load_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHARD_SIZE = "5GB"


def export(
    run: str | Path,
    out: str | Path,
    step: int | None = None,
    merge: bool = True,
    dtype: Literal["bf16", "fp32"] = "bf16",
) -> Path:
    """Write a run's model, tokenizer and model card to the folder ``out``, all of it or nothing.

    Args:
        run: name or folder of a run.
        step: of the checkpoint; the newest by default.
        merge: of a run with adapters: True adds them into the base, False writes them alone in peft's layout.
        dtype: of the weights. fp32 are the master weights, bit for bit.

    Raises:
        UmbelError: as `train.weights.load_model`; ``out`` is not empty or cannot be written; an adapter is
            asked of a run that has none.
    """
    out = Path(out)
    _check_free(out)
    quiet()
    loaded = load_model(run, step)
    if not merge:
        _check_adapters(loaded.config.model, str(run))
    with _taking_name(out) as folder:
        _save(loaded, merge, DTYPES[dtype], folder)
        loaded.tokenizer.save(folder)
        write_text(folder / "README.md", model_card(loaded, merged=merge))
    return out


def _whole(loaded: RunModel) -> PreTrainedModel:
    """The model without wrappers, which knows the run's own special tokens."""
    model: Any = loaded.model
    if loaded.config.model.lora is not None:
        model = model.merge_and_unload()
    tokenizer = loaded.tokenizer
    # An architecture's defaults (Llama's 1 and 2) are other tokens in a vocabulary of one's own.
    ids = {
        "bos_token_id": tokenizer.backend.token_to_id(tokenizer.special.get("bos_token", "")),
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    model.config.update(ids)
    inherited = _inherited_generation(loaded)
    model.generation_config = inherited or GenerationConfig()
    ends = [*end_ids(tokenizer, turn_marker(tokenizer) if loaded.chats else ""), *_ends_of(inherited)]
    model.generation_config.update(**ids | {"eos_token_id": list(dict.fromkeys(ends))})
    return model


def _inherited_generation(loaded: RunModel) -> GenerationConfig | None:
    """How the base generates, unless the run has exchanged its tokenizer."""
    config = loaded.config
    if config.model.pretrained is None or config.data.tokenizer.path is not None:
        return None
    source = pretrained_source(config.model)
    try:
        found = GenerationConfig.from_pretrained(source.pop("pretrained_model_name_or_path"), **source)
    except OSError:
        return None
    try:
        found.validate(strict=True)
    except ValueError:  # some published ones contradict themselves, and such a one is refused on saving
        return GenerationConfig(eos_token_id=found.eos_token_id)
    return found


def _ends_of(generation: GenerationConfig | None) -> list[int]:
    ends = generation.eos_token_id if generation is not None else None
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _save(loaded: RunModel, merge: bool, dtype: torch.dtype, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if merge:
            _whole(loaded).to(dtype).save_pretrained(folder, max_shard_size=SHARD_SIZE)
        else:
            adapted: Any = loaded.model.to(dtype)
            adapted.peft_config["default"].revision = loaded.config.model.revision
            # Adapters never touch the embeddings; to make sure, peft would ask the hub.
            adapted.save_pretrained(folder, save_embedding_layers=False)


def _check_adapters(model: Model, run: str) -> None:
    if model.lora is None or model.pretrained is None:
        what = "trained every weight" if model.lora is None else "stands on no pretrained model"
        raise UmbelError(f"{what}: an adapter alone would be of no use", where=run, fix="export it merged")


def _check_free(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        what = "is not empty" if out.is_dir() else "is no folder"
        raise UmbelError(what, where=str(out), fix="give a folder that does not exist yet")


@contextlib.contextmanager
def _taking_name(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``out`` when the block ends well, and goes when it does not."""
    hidden = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(hidden, ignore_errors=True)  # a killed export leaves one
        hidden.mkdir(parents=True)
        yield hidden
        for file in hidden.iterdir():
            _flush(file)
        fsync_dir(hidden)
        os.replace(hidden, out)
        fsync_dir(out.parent)
    except OSError as error:
        raise UmbelError(f"cannot be written ({error.strerror or error})", where=str(out)) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
