"""A run's jobs as Slurm knows them: from the queue, and from accounting once the queue forgot them.

Works without accounting; then jobs are forgotten some minutes after their end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from base.errors import UmbelError
from launch.slurm.ask import accounting, ask, rows
from record.folder import RunFolder

ACTIVE = (
    "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
    "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SIGNALING", "RESIZING", "RESV_DEL_HOLD",
)  # fmt: skip
"""States of a job that may still run, or run again."""

_QUEUE_FIELDS = "%i|%A|%T|%r|%S|%e|%N|%D|%P|%V|%o"
_ACCOUNT_FIELDS = "JobID,JobIDRaw,State,Reason,Start,End,NodeList,NNodes,Partition,Submit,ExitCode"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job. Times are Unix seconds; ``start`` of a pending one is what Slurm expects, None where it says
    nothing. ``number`` is its own id, also in an array; ``id`` is what scancel and scontrol are told.
    ``nodes`` is Slurm's short form (``node[1-3]``)."""

    id: str
    number: str
    state: str
    reason: str | None
    start: float | None
    end: float | None
    nodes: str
    node_count: int
    partition: str
    submitted: float | None
    script: str | None = None
    exit_code: str | None = None

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE


def jobs(job_id: str) -> list[Job]:
    """The job of that id, or all of an array; empty where nobody knows it any more."""
    try:
        listed = ask("squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--format={_QUEUE_FIELDS}")
    except UmbelError as error:
        if "nvalid job id" not in str(error):
            raise
        listed = ""
    return _queued(listed) or _accounted(job_id)


def active_jobs(folder: RunFolder) -> list[Job]:
    """The jobs that wait or work for a run: those of its name whose script lies in its folder."""
    place = f"{folder.path.resolve()}/"
    listed = ask("squeue", "--noheader", f"--name={folder.name}", f"--format={_QUEUE_FIELDS}")
    return [job for job in _queued(listed) if job.is_active and (job.script or "").startswith(place)]


def queue_position(job: Job) -> int | None:
    """1 for the pending job of its partition that is next by priority; None once it does not wait."""
    listed = ask(
        "squeue", "--noheader", "--array", "--states=PENDING", f"--partition={job.partition}", "--sort=-p,i",
        "--format=%A",
    ).split()  # fmt: skip
    return listed.index(job.number) + 1 if job.number in listed else None


def _queued(listed: str) -> list[Job]:
    found = []
    for name, number, state, reason, start, end, where, count, partition, submitted, script in rows(
        listed, 11
    ):
        facts = Job(
            id=name,
            number=number,
            state=state,
            reason=_known(reason),
            start=_time(start),
            end=_time(end),
            nodes=where,
            node_count=_whole(count),
            partition=partition,
            submitted=_time(submitted),
            script=_known(script),
        )
        found.append(facts)
    return found


def _accounted(job_id: str) -> list[Job]:
    listed = accounting(
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--jobs={job_id}",
        f"--format={_ACCOUNT_FIELDS}",
    )
    found = []
    for name, number, state, reason, start, end, where, count, partition, submitted, code in rows(listed, 11):
        facts = Job(
            id=name,
            number=number,
            state=state.split()[0],  # "CANCELLED by 1000"
            reason=_known(reason),
            start=_time(start),
            end=_time(end),
            nodes="" if where == "None assigned" else where,
            node_count=_whole(count),
            partition=partition,
            submitted=_time(submitted),
            exit_code=code,
        )
        found.append(facts)
    return found


def _time(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+", text) and text != "0" else None


def _known(text: str) -> str | None:
    return None if text in ("", "None", "(null)", "N/A") else text


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0
