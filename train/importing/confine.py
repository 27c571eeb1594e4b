"""What a process that opens pickles gives up: the network, writing elsewhere, starting programs, much memory.

None of this is what keeps a pickle from running code; ``weights_only`` does. It bounds what a fault in that
could do. Linux only, through the C library: each function says whether the system allowed it.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9

# https://docs.kernel.org/userspace-api/landlock.html; the numbers are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_EXECUTE, _READ = 1 << 0, (1 << 2) | (1 << 3)
_ACCESS = (1 << 13) - 1  # all that version 1 of the interface knows


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def die_with_parent() -> None:
    """If whoever started this process is killed, so is this one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def leave_network() -> bool:
    """Move to a network namespace without any interface. Only while there is a single thread."""
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare is None:
        return False
    return not unshare(_CLONE_NEWNET) or not unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def write_only_below(folder: Path) -> bool:
    """From here on create and change files in ``folder`` alone, and start no program (Landlock)."""
    library = ctypes.CDLL(None)
    handled = _Ruleset(_ACCESS & ~_READ)
    ruleset = library.syscall(_CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    if ruleset < 0:
        return False
    parent = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        rule = _Beneath(_ACCESS & ~_READ & ~_EXECUTE, parent)
        if library.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0):
            return False
        if library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            return False
        return not library.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(parent)
        os.close(ruleset)


def limit_resources(largest: int) -> None:
    """Bound memory, open files and the size of what is written, for source files of ``largest`` bytes.

    A file is mapped, and a tensor of it copied; what it holds is written once.
    """
    memory = _mapped() + 4 * largest + (4 << 30)
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 2 * largest + (64 << 20)),
        (resource.RLIMIT_AS, memory),
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def _mapped() -> int:
    """Bytes of address space this process has already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
