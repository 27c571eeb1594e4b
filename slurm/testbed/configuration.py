"""What the daemons of the test cluster are told: their configuration files, as pure functions of settings."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import random
import re
import socket
from dataclasses import dataclass
from pathlib import Path

DEVICES = 4
"""GPUs that each node claims to have. Nothing computes on them: they are allocated, counted and numbered."""
CPUS, MEMORY_MB = 8, 16_000
"""What each node claims to have, whatever this machine has (SlurmdParameters=config_overrides)."""


@dataclass(frozen=True)
class Settings:
    """A test cluster.

    Args:
        folder: where all its files lie.
        nodes: how many nodes, ``node1`` and on.
        accounting: whether slurmdbd and MariaDB run too, so that sacct answers and accounts are checked.
        port: the first of ``nodes + 2`` ports in a row: the controller's, the nodes', the accounting's.
    """

    folder: Path
    nodes: int
    accounting: bool
    port: int

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    @property
    def munge_socket(self) -> Path:
        return self.folder / "run" / "munge.socket"

    @property
    def database_socket(self) -> Path:
        return self.folder / "run" / "mariadb.socket"

    def write(self) -> None:
        """Write every configuration file; the settings themselves come last."""
        _write(self.conf, slurm_conf(self))
        _write(self.folder / "gres.conf", gres_conf(self))
        if self.accounting:
            _write(self.folder / "slurmdbd.conf", slurmdbd_conf(self), mode=0o600)
        _write(_settings_file(self.folder), json.dumps(dataclasses.asdict(self), default=str) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Settings | None:
        """The settings of the cluster whose files lie in ``folder``; None where there is none."""
        try:
            return cls(**json.loads(_settings_file(folder).read_text()) | {"folder": folder})
        except FileNotFoundError:
            return None


def _settings_file(folder: Path) -> Path:
    return folder / "testcluster.json"


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.replace(path)


def user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def slurm_conf(settings: Settings) -> str:
    host = socket.gethostname().split(".")[0]
    folder = settings.folder
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={settings.port + number}"
        f" CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{DEVICES}"
        for number, name in enumerate(settings.names, 1)
    )
    text = f"""\
ClusterName=testcluster
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={settings.port}
SlurmUser={user()}
SlurmdUser={user()}
AuthType=auth/munge
# A requeued job waits for as long as a credential lives: 120 s if nothing is said here.
AuthInfo=socket={settings.munge_socket},cred_expire=10
CredType=cred/munge

StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log

# No control groups and no binding: neither can be relied on in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
DefMemPerCPU=1000

# A site's rules: what a partition does not allow is refused at submission.
EnforcePartLimits=ALL
JobRequeue=1
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

# Shorter than any site's, for tests to be quick. MinJobAge stays long: a job that ended can be asked about.
KillWait=10
SlurmdTimeout=20
SlurmctldTimeout=20
MessageTimeout=10
BatchStartTimeout=20
MinJobAge=300
SchedulerParameters=sched_interval=3,bf_interval=3,batch_sched_delay=0
{accounting(settings)}
{nodes}
PartitionName=main Nodes=ALL Default=YES DefaultTime=10 MaxTime=60 PriorityTier=1 PreemptMode=OFF
PartitionName=low Nodes=ALL DefaultTime=10 MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL DefaultTime=10 MaxTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=ALL DefaultTime=1 MaxTime=2 PriorityTier=1 PreemptMode=OFF
"""
    return re.sub(r"\n{3,}", "\n\n", text)


def accounting(settings: Settings) -> str:
    """Slurm's accounting lines: with a database, a job needs an account that its user belongs to."""
    if not settings.accounting:
        return ""
    return f"""
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={settings.port + settings.nodes + 1}
AccountingStoragePass={settings.munge_socket}
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
"""


def gres_conf(settings: Settings) -> str:
    """Slurm wants a device file for each GPU, whose name ends in its number."""
    files = f"{settings.folder}/devices/gpu[0-{DEVICES - 1}]"
    return "".join(f"NodeName={name} Name=gpu File={files}\n" for name in settings.names)


def slurmdbd_conf(settings: Settings) -> str:
    """slurmdbd reaches its database through a socket that knows it by its Unix user: there is no password."""
    folder = settings.folder
    return f"""\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={settings.port + settings.nodes + 1}
SlurmUser={user()}
AuthType=auth/munge
AuthInfo=socket={settings.munge_socket}
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user()}
StorageLoc=accounting
"""


def free_ports(count: int, wanted: int | None = None) -> int:
    """The first of ``count`` ports in a row that nobody listens on.

    They lie below the range from which the kernel gives out ports by itself, at a place drawn by lot: several
    clusters may start at once.

    Raises:
        OSError: one of those from ``wanted`` on is busy, or no row is free.
    """
    rows = range(17_000, 30_000, 50)
    for first in [wanted] if wanted else random.sample(rows, len(rows)):
        busy = [port for port in range(first, first + count) if _busy(port)]
        if not busy:
            return first
    raise OSError(f"port {busy[0]} is busy")


def _busy(port: int) -> bool:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError:
            return True
    return False
