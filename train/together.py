"""Parts that all processes do, and that fail on all of them if they fail on one."""

from __future__ import annotations

from collections.abc import Callable

from base.errors import UmbelError
from train.distributed import World


class PeerFailed(UmbelError):
    """A part that all processes do failed on another one, which says why."""


def together(world: World, work: Callable[[], object], where: str) -> None:
    """Do a part on every process; if it fails on one, it has failed on all, and none waits in vain.

    Raises:
        PeerFailed: it failed elsewhere. Where it failed, its own error.
    """
    error: Exception | None = None
    try:
        work()
    except Exception as caught:
        error = caught
    failed = world.sum([int(error is not None)])[0]
    if error is not None:
        raise error
    if failed:
        raise PeerFailed("another process failed", where=where)
