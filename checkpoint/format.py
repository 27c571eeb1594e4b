"""Names, limits and refusals of the portable state, version 1, as docs/checkpoint-format.md specifies it."""

from __future__ import annotations

import re
from functools import lru_cache

from base.errors import UmbelError

FORMAT = "umbel-state"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

# A buffer is stored whole. Every other kind is a flat slice: "frozen" of a weight that is not trained;
# "master", "exp_avg", "exp_avg_sq" and whatever another optimizer keeps, of one that is.
FROZEN, BUFFER = "frozen", "buffer"
MASTER = "master"

# BLOOM-176B by ZeRO-3 on 384 ranks: 0.5 MB of header a file, 120 MB of manifest.
MAX_HEADER = 32 << 20
MAX_MANIFEST = 256 << 20
MAX_NAME = 512
MAX_DIMENSIONS = 16

# https://github.com/huggingface/safetensors, `Dtype`: those of whole bytes.
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

_STEP = re.compile(r"step-(\d{8,18})", re.ASCII)
_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_STATE_FILE = re.compile(r"state-[0-9A-Za-z_-]{1,100}\.safetensors", re.ASCII)


class Damaged(UmbelError):
    """The bytes are not what a save writes. An older checkpoint may still serve."""


class Foreign(UmbelError):
    """Whole, but not for this program or this run. Going back to an older one would hide that."""


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """100 for ``step-00000100``, None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def share_name(rank: int, world_size: int) -> str:
    """``00001-of-00002`` for rank 0 of 2, as the hub's shards are counted."""
    return f"{rank + 1:05d}-of-{world_size:05d}"


def state_file_name(rank: int, world_size: int, part: int = 1) -> str:
    suffix = "" if part == 1 else f"-part{part}"
    return f"state-{share_name(rank, world_size)}{suffix}.safetensors"


def is_state_file(name: str) -> bool:
    return bool(_STATE_FILE.fullmatch(name))


def tensor_key(parameter: str, kind: str) -> str:
    return f"{parameter}|{kind}"


@lru_cache(maxsize=1 << 16)
def split_key(key: str) -> tuple[str, str]:
    """Parameter and kind of a tensor key; a kind holds no bar, so the last one separates.

    Raises:
        ValueError: it is no key, or one that could be mistaken for a path.
    """
    parameter, bar, kind = key.rpartition("|")
    if not bar or not _KIND.fullmatch(kind):
        raise ValueError(f"'{shown(key)}' is no tensor key of the form <parameter>|<kind>")
    return check_name(parameter), kind


def check_name(name: str) -> str:
    """``name`` itself if it may name a tensor: short, printable, nothing of a path in it.

    Raises:
        ValueError: it may not.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError(f"'{shown(name)}' may not name a tensor (a path, unprintable or too long)")
    return name


def shown(text: str, limit: int = 80) -> str:
    """What a stranger wrote, fit for one line of a message or a cell of a table."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut)
