"""What is this folder a checkpoint of, and by which reader?"""

from __future__ import annotations

from pathlib import Path

from base.errors import UmbelError
from checkpoint.format import MANIFEST
from train.importing import deepspeed, folders
from train.importing.indexed import Expected
from train.importing.pickles import unpickle
from train.importing.source import Source

ACCELERATE_DEEPSPEED = "pytorch_model"
"""The folder in which Accelerate has DeepSpeed save (accelerate/accelerator.py, ``save_state``)."""

_REFUSED = {
    "latest_checkpointed_iteration.txt": "a Megatron checkpoint, split by tensor and pipeline parallelism",
    ".metadata": "a checkpoint of torch.distributed.checkpoint (FSDP)",
    "pytorch_model_fsdp_0": "an FSDP checkpoint",
    "pytorch_model_fsdp.bin": "an FSDP checkpoint",
    "adapter_model.safetensors": "an adapter alone, without the state of its training",
    MANIFEST: "Umbel's own checkpoint",
}


def open_source(place: Path, tag: str | None, expected: Expected, out: Path) -> Source:
    """Read a checkpoint of whatever kind it is; its pickles are converted in the empty folder ``out``.

    Raises:
        UmbelError: it is of no kind that is read, or not whole.
    """
    if not place.is_dir():
        raise UmbelError("is no folder", where=str(place), fix="give the folder of a checkpoint")
    if not deepspeed.is_deepspeed(place) and deepspeed.is_deepspeed(place / ACCELERATE_DEEPSPEED):
        place = place / ACCELERATE_DEEPSPEED
    try:
        return _read(place, tag, expected, out)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UmbelError(
            f"is not of the form that its trainer writes ({type(error).__name__}: {error})", where=str(place)
        ) from error


def _read(place: Path, tag: str | None, expected: Expected, out: Path) -> Source:
    if deepspeed.is_deepspeed(place) or tag is not None:
        folder = deepspeed.tag_folder(place, tag)
        return deepspeed.read(unpickle(deepspeed.files_of(folder), out), expected)
    for name, what in _REFUSED.items():
        if (place / name).exists():
            fix = "import its weights alone, exported as a Transformers folder"
            raise UmbelError(f"is {what}", where=str(place), fix=fix)
    weights, optimizer = folders.weight_files(place), folders.optimizer_file(place)
    pickled = place / folders.PICKLED
    if optimizer is not None and (weights or pickled.is_file()):
        pickles = [optimizer] if weights else [pickled, optimizer]
        return folders.read_state(place, unpickle(pickles, out), expected)
    if weights:
        return folders.read_weights(weights)
    if any(place.glob("*.bin")):
        raise UmbelError(
            "holds its weights as a pickle, which can run any code when loaded",
            where=str(place),
            fix="save it with safetensors: model.save_pretrained(folder)",
        )
    raise UmbelError(
        "holds no checkpoint that is known",
        where=str(place),
        fix="give a folder of DeepSpeed, of Accelerate's save_state, or of Transformers",
    )
