"""What looks like a secret, and text without it: none may reach a config, a log or a run folder."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE_?KEY|ACCESS_?KEY|JWT|WEBHOOK|(^|_)AUTH",
    re.IGNORECASE,
)
_VALUES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[A-Z0-9]{12,}|wandb_v1_\w{16,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
MARK = "[redacted]"


def holds_secret(text: str) -> bool:
    """Whether a token of a known form, or a password in a URL, stands in ``text``."""
    return bool(_VALUES.search(text))


def names_secret(name: str) -> bool:
    """Whether a variable of that name holds a secret as a rule."""
    return bool(_NAMES.search(name))


def redact(text: str) -> str:
    """Replace tokens by their form, passwords in URLs, and the value of every secret-looking variable."""
    for name, value in os.environ.items():
        if names_secret(name) and len(value) >= 8:
            text = text.replace(value, MARK)
    return _VALUES.sub(MARK, text)
