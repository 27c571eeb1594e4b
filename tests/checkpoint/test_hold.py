from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint import hold
from checkpoint.folders import delete
from checkpoint.format import Damaged
from checkpoint.hold import held, unheld
from support.portable_state import make_state, save

HOLDER = """
import sys, time
from pathlib import Path
from checkpoint.hold import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def is_free(folder: Path) -> bool:
    with unheld(folder) as free:
        return free


def test_many_may_hold_one_and_nobody_deletes_it_meanwhile(checkpoints: Path) -> None:
    folder = save(checkpoints, make_state())
    with held(folder), held(folder):
        assert not is_free(folder)
    assert is_free(folder)


def test_whoever_comes_while_it_is_deleted_is_told(checkpoints: Path) -> None:
    folder = save(checkpoints, make_state())
    with unheld(folder) as free:
        assert free
        with pytest.raises(Damaged, match="is being deleted"), held(folder):
            pass


def test_who_locks_what_was_just_deleted_is_told(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(checkpoints, make_state())
    lock = hold._lock

    def deleted_first(descriptor: int, kind: int) -> bool:
        delete(folder)
        return lock(descriptor, kind)

    monkeypatch.setattr(hold, "_lock", deleted_first)
    with pytest.raises(Damaged, match="is being deleted"), held(folder):
        pass


def test_a_killed_holder_holds_nothing(checkpoints: Path) -> None:
    folder = save(checkpoints, make_state())
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not is_free(folder)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    assert is_free(folder)


def test_what_has_no_manifest_is_held_by_nobody(tmp_path: Path) -> None:
    assert is_free(tmp_path)
    with pytest.raises(Damaged, match="cannot be read"), held(tmp_path):
        pass


def test_a_file_system_without_locks_hinders_nobody(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    folder = save(checkpoints, make_state())
    monkeypatch.setattr(hold.fcntl, "flock", refuse)
    with held(folder):
        assert is_free(folder)
