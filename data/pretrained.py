"""The tokenizer that comes with a pretrained model, from a local folder or from the hub."""

from __future__ import annotations

from pathlib import Path

from base.errors import UmbelError
from configs.schema import Model

FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "*.model", "vocab*", "merges.txt")
"""What a tokenizer consists of: no weights."""


def tokenizer_source(model: Model) -> str | None:
    """The folder with the pretrained model's tokenizer; None for a model built from its shape.

    Raises:
        UmbelError: a hub name that cannot be reached or does not exist.
    """
    if model.pretrained is None or Path(model.pretrained).expanduser().exists():
        return model.pretrained
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(model.pretrained, revision=model.revision, allow_patterns=list(FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UmbelError(
            f"is no folder here, and no model of the hub that can be reached ({type(error).__name__})",
            where=f"model.pretrained={model.pretrained}",
            fix="check the name, the revision, the network and HF_TOKEN",
        ) from error
