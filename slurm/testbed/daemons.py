"""The daemons of the test cluster: what each is started with, and when it answers."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.configuration import DEVICES, Settings, user

PROGRAMS = ("munged", "srun", "slurmctld", "slurmd")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db")
INSTALL = "apt-get install slurm-wlm munge"
INSTALL_ACCOUNTING = f"{INSTALL} slurmdbd mariadb-server"
ACCOUNT = "umbel"
"""The account that whoever starts a cluster with accounting belongs to."""


class Fault(Exception):
    """What is wrong and what to do about it, in one line."""


@dataclass(frozen=True)
class Daemon:
    """How one daemon is started.

    Args:
        kind: its program.
        command: its command line, in the foreground.
        answers: whether it is ready for those that need it.
        node: which node's it is, if it is one's.
    """

    kind: str
    command: list[str]
    answers: Callable[[], bool]
    node: str | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.node}" if self.node else self.kind


def daemons(settings: Settings) -> Iterator[Daemon]:
    """Every daemon, in the order in which they need each other."""
    conf = str(settings.conf)
    yield Daemon("munged", _munged(settings), lambda: _listens(settings.munge_socket))
    if settings.accounting:
        yield Daemon("mariadbd", _mariadbd(settings), lambda: _listens(settings.database_socket))
        port = settings.port + settings.nodes + 1
        yield Daemon("slurmdbd", ["slurmdbd", "-D"], lambda: _listens(port))
    yield Daemon("slurmctld", ["slurmctld", "-D", "-f", conf], lambda: _listens(settings.port))
    for name in settings.names:
        # Whether nodes are ready is told by the state that the controller gives them.
        yield Daemon("slurmd", ["slurmd", "-D", "-N", name, "-f", conf], lambda: True, node=name)


def _munged(settings: Settings) -> list[str]:
    folder = settings.folder
    return [
        *("munged", "--foreground", "--force", f"--socket={settings.munge_socket}"),
        *(f"--key-file={folder}/munge.key", f"--seed-file={folder}/run/munge.seed"),
        f"--pid-file={folder}/run/munged.pid",
    ]


def _mariadbd(settings: Settings) -> list[str]:
    return [
        *("mariadbd", "--no-defaults", f"--datadir={settings.folder}/database", f"--user={user()}"),
        *(f"--socket={settings.database_socket}", "--skip-networking"),
        *(f"--pid-file={settings.folder}/run/mariadbd.pid", "--innodb-lock-wait-timeout=900"),
        *("--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"),
    ]


def _listens(address: Path | int) -> bool:
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    with socket.socket(family) as client:
        try:
            client.connect(("127.0.0.1", address) if isinstance(address, int) else str(address))
        except OSError:
            return False
    return True


# What must be there before --------------------------------------------------------------------------------


def search_path() -> str:
    """Daemons lie in folders that a normal user's PATH may lack."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def check_installed(accounting: bool) -> None:
    """
    Raises:
        Fault: the first program that is missing, and how to get it.
    """
    for program in (*PROGRAMS, *(ACCOUNTING_PROGRAMS if accounting else ())):
        if not shutil.which(program, path=search_path()):
            line = INSTALL_ACCOUNTING if program in ACCOUNTING_PROGRAMS else INSTALL
            raise Fault(f"{program} is not installed; {line}")


def prepare(settings: Settings) -> None:
    """Make the folders, the key and the empty database that the daemons want to find."""
    folder = settings.folder
    for name in ("devices", "log", "run", "spool", "state", *(f"spool/{node}" for node in settings.names)):
        (folder / name).mkdir()
    for number in range(DEVICES):
        # Any character device will do, and a container has this one.
        (folder / "devices" / f"gpu{number}").symlink_to("/dev/null")
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    settings.write()
    if settings.accounting:
        _tool(
            settings,
            *("mariadb-install-db", "--no-defaults", f"--datadir={folder}/database"),
            *(f"--user={user()}", "--auth-root-authentication-method=socket"),
            *(f"--auth-root-socket-user={user()}", "--skip-test-db"),
        )


def register(settings: Settings) -> None:
    """Tell the accounting of the cluster and of its user, without whom no job is taken; it may know them."""
    for words in (
        "cluster testcluster",
        f"account {ACCOUNT} cluster=testcluster",
        f"user {user()} account={ACCOUNT} defaultaccount={ACCOUNT}",
    ):
        command = ("sacctmgr", "--immediate", "--quiet", "add", *words.split())
        _tool(settings, *command, unless=("already exists", "Nothing new added"))


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment, without any other Slurm's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    return own | {
        "PATH": search_path(),
        "SLURM_CONF": str(settings.conf),
        "MYSQL_UNIX_PORT": str(settings.database_socket),
    }


def _tool(settings: Settings, *command: str, unless: tuple[str, ...] = ()) -> None:
    """Run one to its end.

    Raises:
        Fault: it failed, in its own words, and none of them is in ``unless``.
    """
    ran = subprocess.run(command, env=environment(settings), capture_output=True, text=True, check=False)
    if ran.returncode and not any(words in ran.stdout + ran.stderr for words in unless):
        words = (ran.stderr or ran.stdout).strip().splitlines() or [f"exit code {ran.returncode}"]
        raise Fault(f"{command[0]}: {words[-1].strip()}")


# How one starts ---------------------------------------------------------------------------------------------


def launch(daemon: Daemon, settings: Settings, *, seconds: float) -> None:
    """Start a daemon of its own session and wait until it answers.

    Raises:
        Fault: it ended, or does not answer within ``seconds``; with what it said last.
    """
    said = settings.folder / "log" / f"{daemon.name}.out"
    with said.open("ab") as file:
        process = subprocess.Popen(
            daemon.command,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd=settings.folder / "run",
        )
    deadline = time.monotonic() + seconds
    while not daemon.answers():
        if process.poll() is not None:
            raise Fault(f"{daemon.name} ended: {last_words(said)}; {said}")
        if time.monotonic() > deadline:
            raise Fault(f"{daemon.name} does not answer after {seconds:.0f} s: {last_words(said)}; {said}")
        time.sleep(0.05)


def last_words(log: Path) -> str:
    """The last line of a log that tells of a fault, or its last line."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    for sign in ("fatal", "error", ""):
        if found := [line for line in lines if sign in line.lower()]:
            return found[-1].strip()
    return "it said nothing"
