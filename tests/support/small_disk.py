"""A small file system of one's own: full, out of inodes or read-only when a test wants it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMESPACES = (["unshare", "--map-root-user", "--mount"], ["unshare", "--mount"])
"""As any user where the kernel lets users have namespaces; as root elsewhere."""


class SmallDisk:
    """A tmpfs in a mount namespace that a shell holds open, seen through /proc; gone with the shell."""

    def __init__(self, namespace: list[str], mount: Path, options: str) -> None:
        self._mount = mount
        self._shell = subprocess.Popen(
            [*namespace, "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.path = Path(f"/proc/{self._shell.pid}/root{mount}")
        self.works = self._run(f"mount -t tmpfs -o {options} tmpfs '{mount}'") and self.path.is_mount()

    def make_read_only(self) -> None:
        """Waits until no file is open for writing, as the kernel demands."""
        assert self._run(f"until mount -o remount,ro '{self._mount}'; do sleep 0.001; done")

    def end(self) -> None:
        self._shell.kill()
        self._shell.communicate()

    def _run(self, command: str) -> bool:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        try:
            self._shell.stdin.write(f"{command}; echo $?\n")
            self._shell.stdin.flush()
        except BrokenPipeError:
            return False
        return self._shell.stdout.readline() == "0\n"


@contextmanager
def small_disk(mount: Path, options: str) -> Iterator[SmallDisk]:
    """Mount a tmpfs, as ``size=256k,nr_inodes=20``; skips the test where nobody may, but fails it in CI."""
    mount.mkdir()
    for namespace in NAMESPACES:
        disk = SmallDisk(namespace, mount, options)
        try:
            if disk.works:
                yield disk
                return
        finally:
            disk.end()
    message = "no file system can be mounted here, neither as root nor in a user namespace"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
