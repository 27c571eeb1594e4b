"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

from base.files import human_bytes

FINDINGS = ("hang", "silent", "straggler", "spike", "disk")
"""Events that tell of themselves in a ``text``."""


def short(count: float) -> str:
    """``41k``, ``1.2M``, ``176B``: three figures at most."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit * 0.9995:
            scaled = count / limit
            return f"{scaled:.0f}{unit}" if scaled >= 10 else f"{scaled:.1f}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """``8 s``, ``2m10``, ``6h05``, ``3d 4h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def percent(share: float) -> str:
    """``92.1 %``; never rounded up to a whole that it is not."""
    shown = math.floor(share * 1000) / 10 if 0.9995 <= share < 1 else round(share * 100, 1)
    return f"{shown:.4g} %"


def ago(seconds: float) -> str:
    """``just now``, ``40 s ago``, ``3 min ago``, ``2 h ago``, ``5 d ago``."""
    for limit, size, unit in ((5, 0, ""), (60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit} ago" if size else "just now"
    return f"{seconds / 86400:.0f} d ago"


def event_text(event: dict[str, Any]) -> str | None:
    """A sentence for the events worth a line of their own while a run goes on; None for the others."""
    kind = event["event"]
    if kind == "start" and event["step"]:
        return f"continuing after step {event['step']}, attempt {event['attempt']}"
    if kind == "checkpoint":
        size = f", {human_bytes(event['bytes'])}" if event.get("bytes") else ""
        held = f", steps held {event['blocked']:.2f} s" if "blocked" in event else ""
        return f"checkpoint of step {event['step']} ({event['seconds']:.1f} s{size}{held})"
    if kind == "checkpoint_skipped":
        return f"no checkpoint of step {event['step']}: {event['reason']}"
    if kind == "self_check":
        return f"checkpoint of step {event['step']} was read back: it is what is live, to the bit"
    if kind == "evaluation":
        losses = " · ".join(f"{source} {loss:.3f}" for source, loss in event["losses"].items())
        return f"held-out loss after step {event['step']}: {losses}"
    if kind == "warning":
        return f"warning: {event['text']}"
    if kind in FINDINGS:
        return str(event["text"])
    if kind == "restart":
        return f"the workers are started again ({event['why']})"
    if kind == "requeue":
        return f"the job is queued again ({event['why']})"
    if kind == "gave up":
        return f"given up: {event['why']}"
    if kind == "blamed":
        return f"put down to {event['node']}: {event['why']}"
    return None
