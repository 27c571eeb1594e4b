"""How the last attempt of a run that is over ended, in a user's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from record.events import since_start

Event = dict[str, Any]

_NEWS = ("finished", "stopped", "failed", "hang", "gave up", "requeue")
_BEGUN = ("job", "start")
_BY_OTHERS = ("preempted", "requeued", "time limit", "too few nodes are left")
"""Reasons for a requeue that lie in no attempt's own events."""

_REASONS = {
    "umbel stop": "stopped by umbel stop",
    "control/stop": "stopped by the file control/stop",
    "time limit": "time limit, saved before it",
    "SIGUSR2": "time limit, saved before it",
    "Ctrl-C": "stopped by Ctrl-C",
    "no checkpoint could be written": "stopped: no checkpoint could be written",
}
UNTOLD = "ended without a word: killed, or its machine went down"


def how_it_ended(events: Sequence[Event], slurm: str | None = None, works: bool = False) -> str | None:
    """``finished``, ``preempted``, ``crashed: rank 3 on node2: …``; None where nothing has ended yet.

    Args:
        slurm: what Slurm says of the end of the run's job, if it says anything.
        works: whether somebody works on the run now: then the attempt before it is told of.
    """
    news = [number for number, event in enumerate(events) if event["event"] in _NEWS]
    begun = [number for number, event in enumerate(events) if event["event"] in _BEGUN]
    if begun and not works and begun[-1] > (news[-1] if news else -1):
        return slurm or UNTOLD
    if not news:
        return slurm
    return _in_words(since_start(events[: news[-1] + 1], "starting workers"), slurm)


def _in_words(events: Sequence[Event], slurm: str | None) -> str | None:
    """From the events of one attempt, by what tells most."""
    told = {event["event"]: event for event in events if event["event"] in _NEWS}
    if "finished" in told:
        return "finished"
    if "gave up" in told:
        return f"gave up: {told['gave up']['why']}"
    if "hang" in told:
        return str(told["hang"]["text"])
    failed = [event for event in events if event["event"] == "failed"]
    verdicts = [event for event in failed if event.get("verdict")]
    if verdicts or (failed and "stopped" not in told):
        return _failure((verdicts[-1:] + failed)[0])
    if (why := told.get("requeue", {}).get("why")) in _BY_OTHERS:
        return "requeued by Slurm" if why == "requeued" else str(why)
    return _stop(told["stopped"]["reason"], slurm) if "stopped" in told else slurm


def _failure(event: Event) -> str:
    error = str(event.get("error"))
    if event.get("kind") == "node":
        return error
    who = who_failed(event)
    return f"crashed: {who}: {error}" if who and who not in error else f"crashed: {error}"


def who_failed(event: Event) -> str:
    """``rank 3 on node2``, as far as a ``failed`` event tells; else nothing."""
    rank = None if event.get("rank") is None else f"rank {event['rank']}"
    return " on ".join(filter(None, (rank or event.get("who"), event.get("node"))))


def _stop(reason: str, slurm: str | None) -> str:
    if reason.startswith("umbel cancel"):
        return f"cancelled by {reason.rpartition(' by ')[2]}"
    if reason == "scancel":
        return slurm or "cancelled"
    if reason.startswith("SIG") and reason != "SIGUSR2":
        return slurm or f"stopped by {reason}"
    return _REASONS.get(reason) or f"stopped: {reason}"
