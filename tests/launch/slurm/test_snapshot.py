"""The code of a run as it was submitted: whole, once, and not what a killed copy left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.processes import HOME
from launch.slurm.snapshot import ROOMS, snapshot_name, take_snapshot
from record.folder import RunFolder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small code base with the rooms of the real one."""
    place = tmp_path / "home"
    for room in ROOMS:
        (place / room / "deep").mkdir(parents=True)
        (place / room / "__init__.py").write_text(f"# {room}\n")
        (place / room / "deep" / "part.py").write_text("x = 1\n")
    (place / "umbel.py").write_text("main = None\n")
    (place / "configs" / "preset.yaml").write_text("a: 1\n")
    (place / "train" / "notes.txt").write_text("mine\n")
    return place


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def test_code_and_presets_and_nothing_else(home: Path, folder: RunFolder) -> None:
    code = take_snapshot(folder, home)
    assert code == folder.job / snapshot_name(home)
    names = {file.relative_to(code).as_posix() for file in code.rglob("*") if file.is_file()}
    wanted = {f"{room}/{name}" for room in ROOMS for name in ("__init__.py", "deep/part.py")}
    assert names == wanted | {"umbel.py", "configs/preset.yaml"}


def test_the_same_code_is_copied_once_and_other_code_beside_it(home: Path, folder: RunFolder) -> None:
    first = take_snapshot(folder, home)
    mark = (first / "umbel.py").stat().st_mtime_ns
    (first / "train" / "__pycache__").mkdir()
    assert take_snapshot(folder, home) == first
    assert (first / "umbel.py").stat().st_mtime_ns == mark
    (home / "train" / "deep" / "part.py").write_text("x = 2\n")
    second = take_snapshot(folder, home)
    assert second != first
    assert (first / "train" / "deep" / "part.py").read_text() == "x = 1\n"
    assert (second / "train" / "deep" / "part.py").read_text() == "x = 2\n"


@pytest.mark.parametrize("harm", ["emptied", "removed", "added"])
def test_a_copy_that_was_changed_is_made_anew(home: Path, folder: RunFolder, harm: str) -> None:
    code = take_snapshot(folder, home)
    file = code / "train" / "deep" / "part.py"
    if harm == "emptied":
        file.write_text("")
    elif harm == "removed":
        file.unlink()
    else:
        (code / "train" / "other.py").write_text("")
    assert take_snapshot(folder, home) == code
    assert file.read_text() == "x = 1\n" and not (code / "train" / "other.py").exists()


def test_a_full_disk_leaves_nothing(home: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: Path, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        take_snapshot(folder, home)
    assert list(folder.job.iterdir()) == []


def test_killed_halfway_it_is_taken_for_nothing(home: Path, folder: RunFolder) -> None:
    for number in range(3000):
        (home / "data" / f"file{number}.py").write_text(f"y = {number}\n")
    program = (
        "import sys; from pathlib import Path; from launch.slurm.snapshot import take_snapshot\n"
        "from record.folder import RunFolder\n"
        "take_snapshot(RunFolder(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(folder.path), str(home)]
    process = subprocess.Popen(command, cwd=HOME)
    while not any(folder.job.glob(".code-*.tmp/data")):
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder.job / snapshot_name(home)).exists()
    code = take_snapshot(folder, home)
    assert [entry.name for entry in folder.job.iterdir()] == [code.name]


def test_umbel_works_from_its_snapshot(folder: RunFolder) -> None:
    code = take_snapshot(folder)
    program = "import base, launch.slurm.script, configs.compose as c; print(c.__file__); c.compose([])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd="/",
        env={**os.environ, "PYTHONPATH": str(code)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(code / "configs" / "compose.py")
