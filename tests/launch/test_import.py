"""`umbel checkpoint import` and `umbel resume`, as they are typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from base.files import sha256_file
from checkpoint.manifest import read as read_manifest
from configs.schema import Model
from record.events import latest, read_events
from record.folder import RunFolder
from record.metrics import read_metrics
from support.runs import TINY, tiny
from support.small_models import train_here
from train.model import build_model


def umbel(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = "import umbel; umbel.main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_an_imported_run_is_resumed_as_if_it_had_begun_here(tmp_path: Path) -> None:
    """Its losses are those of a run that takes the same weights for pretrained ones."""
    twin = tiny(tmp_path, "run.name=twin")
    build_model(twin.model, 7).save_pretrained(tmp_path / "weights")
    overrides = (*TINY, "data.path=corpus.jsonl", "run.name=mine", "optimizer.eps=1e-8")
    done = umbel(tmp_path, "checkpoint", "import", "weights", *overrides)
    assert done.returncode == 0, done.stderr
    assert "mine is at step 0: Transformers weights" in done.stderr
    assert "umbel resume mine" in done.stderr
    folder = RunFolder(tmp_path / "runs" / "mine")
    event = latest(read_events(folder), "imported")
    assert event is not None
    digest = {"model.safetensors": sha256_file(tmp_path / "weights" / "model.safetensors")}
    assert (event["source"], event["step"], event["files"]) == ("weights", 0, digest)
    manifest = read_manifest(folder.checkpoints / "step-00000000")
    assert manifest["extra"]["imported"] == {"kind": "Transformers weights", "files": digest}
    assert "umbel checkpoint import" in (folder.attempt_job(0) / "job.json").read_text().replace(
        "-c ", "umbel "
    )
    resumed = umbel(tmp_path, "resume", "mine")
    assert resumed.returncode == 0, resumed.stderr
    twin.model = Model(pretrained=str(tmp_path / "weights"), precision="fp32")
    twin.data.tokenizer.path = str(folder.path / "tokenizer")
    losses = [line["loss"] for line in read_metrics(folder)]
    assert losses == pytest.approx([line["loss"] for line in read_metrics(train_here(twin))], rel=1e-6)
    assert latest(read_events(folder), "start")["step"] == 0  # type: ignore[index]


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = umbel(tmp_path, "checkpoint", "import", "empty", *TINY)
    assert done.returncode == 2
    assert "empty: holds no checkpoint that is known" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []
