from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from base.files import read_json
from configs.compose import compose, load
from launch import job
from record.folder import RunFolder


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "umbel.py").write_text("old\n")
    git(folder, "init", "-q")
    git(folder, "add", "umbel.py")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.setattr(job, "HOME", folder)
    return folder


def test_commit_and_what_is_not_committed(checkout: Path) -> None:
    code, diff = job.code_state()
    assert (len(code["commit"]), code["uncommitted"], diff) == (40, False, "")
    (checkout / "umbel.py").write_text("new\n")
    code, diff = job.code_state()
    assert code["uncommitted"]
    assert "+new" in diff


def test_another_projects_checkout_says_nothing_of_us(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = checkout / "site-packages"
    inside.mkdir()
    (inside / "umbel.py").write_text("")
    monkeypatch.setattr(job, "HOME", inside)
    code, diff = job.code_state()
    assert "commit" not in code
    assert diff == ""


def test_no_secret_reaches_the_folder(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_" + "abcdefghij" * 3
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("UMBEL_ENDPOINT", f"https://user:{secret}@hub")
    (checkout / "umbel.py").write_text(f"token = '{secret}'\n")
    folder, config = RunFolder(tmp_path / "run").create(), compose(["experiment=demo"])
    job.freeze(folder, config, 1, ["umbel", "launch", f"x={secret}"], 2)
    files = [file for file in folder.path.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"job.json", "code.diff", "packages.txt", "run.yaml"}
    assert all(secret not in file.read_text() for file in files)
    assert load(folder.run_yaml) == config == load(folder.attempt_job(1) / "run.yaml")
    assert read_json(folder.attempt_job(1) / "job.json")["world_size"] == 2
    assert "torch==" in (folder.attempt_job(1) / "packages.txt").read_text()
