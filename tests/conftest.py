"""Tests see no network, no account, no accelerator job and no home folder but their own."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from support.slurm import cluster, slurm_cluster  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(tempfile.mkdtemp(prefix="umbel-tests-"))
STRANGERS = ("SLURM_", "UMBEL_", "HF_", "WANDB_", "XDG_", "TORCHELASTIC_")
LAUNCHER = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "FORCE_COLOR",
)

# Set at import: Hugging Face's libraries read their environment when they are imported.
for name in list(os.environ):
    if name.startswith(STRANGERS) or name in LAUNCHER:
        del os.environ[name]
os.environ |= {
    "HOME": str(HOME),
    "UMBEL_CACHE": str(HOME / "cache"),
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    # Kernels that DeepSpeed compiles are kept from one test run to the next.
    "TORCH_EXTENSIONS_DIR": str(ROOT / ".pytest_cache" / "extensions"),
}

# Its import closes every logging handler there is; that of absl, which grain brings, then closes the stderr
# that pytest had put in place.
importlib.import_module("submitit")

settings.register_profile("umbel", deadline=None, print_blob=True)
settings.load_profile("umbel")


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture
def tiny_config(tmp_path: Path):
    """A checked run of seconds; `support.runs.tiny` makes others."""
    from support.runs import tiny

    return tiny(tmp_path)
