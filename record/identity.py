"""The run's identity: made once, at its first start, and the same for every attempt and institution."""

from __future__ import annotations

import secrets

from base.files import write_text
from record.folder import RunFolder


def run_id(folder: RunFolder) -> str:
    """The id in ``run_id``, made now if there is none. Checkpoints and the tracker carry it."""
    path = folder.path / "run_id"
    if not path.exists():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text().strip()
