from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from base.errors import UmbelError
from record.folder import RunFolder
from record.lock import HANDED_DOWN, RunLock, holder, is_held

HOLD = """
import sys, time
from pathlib import Path
from record.folder import RunFolder
from record.lock import RunLock
RunLock(RunFolder(Path(sys.argv[1]))).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def start_holder(folder: RunFolder) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, env={"PYTHONPATH": str(root)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_kill_9_frees_the_lock(folder: RunFolder) -> None:
    process = start_holder(folder)
    assert is_held(folder)
    owner = holder(folder)
    assert owner is not None
    assert owner["pid"] == process.pid
    with pytest.raises(UmbelError, match=f"in use by process {process.pid} on .*umbel stop .*run"):
        RunLock(folder).acquire(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not is_held(folder)
    assert holder(folder) is None
    RunLock(folder).acquire(0).release()


def test_release_and_context(folder: RunFolder) -> None:
    with RunLock(folder):
        assert is_held(folder)
    assert not is_held(folder)


def test_two_names_are_two_locks(folder: RunFolder) -> None:
    with RunLock(folder, "launch"):
        assert is_held(folder, "launch")
        assert not is_held(folder)


def test_a_forked_child_that_outlives_the_holder_does_not_keep_it(folder: RunFolder) -> None:
    lock = RunLock(folder).acquire()
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        lock.release()
        RunLock(folder).acquire(2).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_that_never_ran_is_free(tmp_path: Path) -> None:
    assert not is_held(RunFolder(tmp_path))


ADOPT = """
import os, sys, time
from pathlib import Path
from record.folder import RunFolder
from record.lock import HANDED_DOWN, RunLock
lock = RunLock(RunFolder(Path(sys.argv[1]))).adopt(int(os.environ[HANDED_DOWN]))
print(os.get_inheritable(lock.descriptor), flush=True)
time.sleep(60)
"""


def test_a_lock_that_was_handed_down_is_held_until_both_have_let_go(folder: RunFolder) -> None:
    root, lock = Path(__file__).resolve().parents[2], RunLock(folder).acquire()
    with lock.shared() as descriptor:
        child = subprocess.Popen(
            [sys.executable, "-c", ADOPT, str(folder.path)],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(root), HANDED_DOWN: str(descriptor)},
            pass_fds=(descriptor,),
        )
    assert child.stdout is not None
    assert child.stdout.readline() == b"False\n", "its own children do not hold it"
    lock.release()
    assert is_held(folder)
    child.kill()
    child.communicate()
    assert not is_held(folder)
