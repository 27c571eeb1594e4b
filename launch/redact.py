"""No secret leaves the machine in a run folder."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE_?KEY|ACCESS_?KEY", re.IGNORECASE
)
_VALUES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,}|wandb_v1_\w{16,})"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
MARK = "[redacted]"


def redact(text: str) -> str:
    """Replace tokens by their form, passwords in URLs, and the value of every secret-looking variable."""
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= 8:
            text = text.replace(value, MARK)
    return _VALUES.sub(MARK, text)
