"""What any node can be asked without torch: memory, disks, versions, ports, the hub."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import threading
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

from base.secrets import redact

HUB = "https://huggingface.co"
HUB_SECONDS = 3.0

_SHM = Path("/dev/shm")


def torch_version() -> str | None:
    """Of the torch that a worker would import."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def disks(places: dict[str, Path]) -> dict[str, int]:
    """Bytes free to this user, by place; those that are not there are left out."""
    return {name: shutil.disk_usage(place).free for name, place in places.items() if place.is_dir()}


def shm_free() -> int | None:
    """Bytes of shared memory that are free; None where there is none."""
    return shutil.disk_usage(_SHM).free if _SHM.is_dir() else None


def kernel() -> str:
    return platform.release()


def gives_ports() -> bool:
    """Whether a process can listen on a port that is free."""
    try:
        with socket.socket() as server:
            server.bind(("", 0))
            server.listen()
    except OSError:
        return False
    return True


class HubQuestion:
    """Asks the hub for nothing, without a token, while something else goes on.

    A name server that does not answer keeps no timeout: hence a thread, which nobody waits for in the end.
    """

    def __init__(self) -> None:
        self._url = os.environ.get("HF_ENDPOINT") or HUB
        self._answer: str | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def answer(self) -> str:
        """Empty where it answers, whatever it answers; else why it does not."""
        self._thread.join(HUB_SECONDS + 1)
        return f"no answer in {HUB_SECONDS:.0f} s" if self._answer is None else self._answer

    def _ask(self) -> None:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self._url, method="HEAD"), timeout=HUB_SECONDS
            ):
                self._answer = ""
        except urllib.error.HTTPError:
            self._answer = ""
        except (OSError, ValueError) as error:
            self._answer = redact(str(getattr(error, "reason", error)))
