"""What Slurm says of the jobs of runs, asked once for all of them."""

from __future__ import annotations

import pwd
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from launch.slurm.ask import accounting, has_slurm, rows
from launch.slurm.jobs import Job, jobs, queue_position
from launch.slurm.queries import hostnames, nodes
from record.folder import RunFolder

_WHY = {
    "Resources": "waits for free nodes",
    "Priority": "others go first",
    "BeginTime": "waits a moment, for it was requeued",
    "Dependency": "waits for the job before it",
    "JobArrayTaskLimit": "waits for the job before it",
    "JobHeldUser": "held by its user",
    "JobHeldAdmin": "held by an administrator",
    "ReqNodeNotAvail": "a node that it needs is not there",
}
_ENDS = {
    "TIMEOUT": "time limit, killed before it had ended",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "BOOT_FAIL": "its nodes did not boot",
    "DEADLINE": "Slurm's deadline for the job",
}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One run's jobs. Times are Unix seconds; what Slurm does not say is None.

    Attributes:
        job: the one that works, else the next to start, else the last one.
        waits: whether it has yet to start.
        works: whether it has started and not ended.
        ends: whether it is about to have ended; it may come back.
        reason: why it waits, in words.
        position: 1 for the next of its partition; only where it was asked for.
        ended: what ended the last one, in words.
        cancelled: whether it was somebody's scancel.
    """

    job: str
    waits: bool = False
    works: bool = False
    ends: bool = False
    reason: str | None = None
    expected_start: float | None = None
    position: int | None = None
    deadline: float | None = None
    nodes: int | None = None
    ended: str | None = None
    cancelled: bool = False


def standings(
    events: Mapping[RunFolder, Sequence[dict[str, Any]]], *, closely: bool = False
) -> dict[RunFolder, Standing]:
    """What Slurm says of these runs, from their events; empty without Slurm or for runs without jobs.

    Args:
        closely: ask for the place in the queue, too: one more question for each run that waits.

    Raises:
        UmbelError: Slurm does not answer.
    """
    wanted = {folder: ids for folder, each in events.items() if (ids := job_ids(each))}
    if not wanted or not has_slurm():
        return {}
    asked = list(dict.fromkeys(number for ids in wanted.values() for number in ids))
    known = jobs(",".join(asked))
    found = {
        folder: [job for job in known if {job.number, job.id.split("_")[0]} & set(ids)]
        for folder, ids in wanted.items()
    }
    over = [ids[-1] for folder, ids in wanted.items() if not any(job.is_active for job in found[folder])]
    ends = _ends(over) if over else {}
    return {
        folder: _standing(found[folder], closely) or _ended(ids[-1], ends, _had(events[folder]))
        for folder, ids in wanted.items()
    }


def job_ids(events: Sequence[dict[str, Any]]) -> list[str]:
    """The jobs of the newest submission, oldest first."""
    submitted = [event for event in events if event["event"] == "submitted"]
    if not submitted:
        started = [event["id"] for event in events if event["event"] == "job" and event.get("id")]
        return started[-1:]
    newest = [event["job"] for event in submitted if event["script"] == submitted[-1]["script"]]
    started = [event["id"] for event in events[events.index(submitted[-1]) :] if event["event"] == "job"]
    return list(dict.fromkeys([*newest, *filter(None, started)]))


def _standing(known: Sequence[Job], closely: bool) -> Standing | None:
    """Of a run that has a job in the queue."""
    working = [job for job in known if job.is_active and job.state != "PENDING"]
    if working:
        job = working[0]
        ends = job.state == "COMPLETING"
        return Standing(job=job.id, works=True, ends=ends, deadline=job.end, nodes=job.node_count)
    waiting = sorted((job for job in known if job.is_active), key=lambda job: int(job.number))
    if not waiting:
        return None
    job = waiting[0]
    return Standing(
        job=job.id,
        waits=True,
        reason=_reason(job.reason),
        expected_start=job.start,
        position=queue_position(job) if closely else None,
        nodes=job.node_count,
    )


def _reason(word: str | None) -> str | None:
    """Slurm's word for it, explained where it is a common one."""
    first = (word or "").split(",")[0]
    return _WHY.get(first) or (f"Slurm says {word}" if word else None)


def _ended(job: str, ends: Mapping[str, tuple[str, str]], had: Sequence[str]) -> Standing:
    state, where = ends.get(job, ("", ""))
    name, _, who = state.partition(" by ")
    return Standing(job=job, ended=_in_words(name, who, where, had), cancelled=name == "CANCELLED")


def _had(events: Sequence[dict[str, Any]]) -> list[str]:
    """The nodes of the newest start: accounts may leave out the one that a job has lost."""
    return next((event.get("nodes", []) for event in reversed(events) if event["event"] == "job"), [])


def _ends(numbers: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Job to its state, with who cancelled it, and its nodes; nothing where the site keeps no accounts."""
    listed = accounting(
        "sacct", "--noheader", "--parsable2", "--allocations", "--duplicates",
        f"--jobs={','.join(numbers)}", "--format=JobIDRaw,JobID,State,NodeList",
    )  # fmt: skip
    found = {}
    for raw, name, state, where in rows(listed, 4):
        found[raw] = found[name.split("_")[0]] = (state, where)
    return found


def _in_words(state: str, who: str, where: str, had: Sequence[str]) -> str | None:
    if state == "CANCELLED":
        return f"cancelled by {_user(who)}" if who else "cancelled"
    if state == "NODE_FAIL":
        lost = _lost({*hostnames(where), *had})
        return f"node lost: {', '.join(lost)}" if lost else "one of its nodes was lost"
    return _ENDS.get(state)


def _lost(had: Set[str]) -> list[str]:
    """Those of a job's nodes that do not work now."""
    return [node.name for node in nodes() if node.name in had and not node.works]


def _user(number: str) -> str:
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (KeyError, ValueError):
        return f"user {number}"
