"""Where a pretrained model lies: in a folder of this machine, or on the hub; and the tokenizer beside it."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from base.errors import UmbelError
from configs.schema import Model

FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "*.model", "vocab*", "merges.txt")
"""What a tokenizer consists of: no weights."""

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def local_folder(name: str) -> Path | None:
    """The folder that ``model.pretrained`` names; None where it is a name of the hub, ``org/model``.

    Raises:
        UmbelError: it is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(name):
        raise UmbelError(
            "is no folder", where=f"model.pretrained={name}", fix="give a folder, or a hub name org/model"
        )
    return None


@lru_cache
def hub_folder(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The cache's folder of a hub model's commit, whose name is that commit, with these files in it.

    Asks the hub once, without a second try; what is in the cache serves without it.

    Raises:
        UmbelError: the model does not exist, or is not in the cache and the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # Its "Retrying…" would hide the one line that counts.
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UmbelError(
            f"is no folder here, and no model of the hub that can be reached ({type(error).__name__})",
            where=f"model.pretrained={name}",
            fix="check the name, the revision, the network and HF_TOKEN",
        ) from error


def tokenizer_source(model: Model) -> str | None:
    """The folder with the pretrained model's tokenizer; None for a model built from its shape.

    Raises:
        UmbelError: neither a folder nor a hub name that can be reached.
    """
    if model.pretrained is None:
        return None
    return str(local_folder(model.pretrained) or hub_folder(model.pretrained, model.revision, FILES))
